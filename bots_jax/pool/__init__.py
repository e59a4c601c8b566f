"""The pool: which tasks exist, what is known of them, visits, and evidence."""
