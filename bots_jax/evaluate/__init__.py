"""What measures: metrics, reports, replays of recorded runs. Stands above what selects."""
