"""Write smollm2.json: what transformers, an independent runtime, makes of the same file.

    python make_reference.py SmolLM2-135M-Instruct.Q4_1.gguf

It needs torch, transformers and gguf. For each text: its tokens, and for some positions the
log-sum-exp of the logits and the logits of some tokens, the largest among them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

TEXTS = (
    "<|im_start|>user\nCalculate 57 - 3.\nHow many \u00e9's? <|im_end|>\n<|im_start|>assistant\n",
    "The capital of France is Paris, and 12345 + 678 = 13023; don't you  think so?",
)


def summary(logits: np.ndarray) -> dict[str, Any]:
    """Some numbers of f[T, V] logits, at every seventh position and the last."""
    rows = sorted({*range(0, len(logits), 7), len(logits) - 1})
    told = []
    for row in rows:
        best = np.argsort(logits[row])[::-1][:6].tolist()
        ids = [*best, *range(11, logits.shape[1], 6007)]
        top = float(logits[row].max())
        total = top + float(np.log(np.sum(np.exp(logits[row].astype(np.float64) - top))))
        values = [round(float(logits[row, i]), 5) for i in ids]
        told.append({"position": row, "logsumexp": round(total, 5), "ids": ids, "logits": values})
    return {"positions": told, "spread": round(float(logits.std()), 5)}


def main(path: Path) -> None:
    """Run the model on each text."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    told = []
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].numpy()
        told.append({"text": text, "ids": ids, **summary(logits)})
    target = Path(__file__).with_name("smollm2.json")
    target.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
