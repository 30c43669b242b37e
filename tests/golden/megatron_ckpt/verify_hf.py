"""python verify_hf.py HF_DIR LOGITS.npy : transformers loads the directory; its float32 logits are compared with LOGITS.npy."""
import sys, numpy as np, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

hf, ref = sys.argv[1], np.load(sys.argv[2])
model, info = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32, output_loading_info=True)
n, v = ref.shape
with torch.no_grad():
    out = model.eval()(torch.tensor([[(7 * i * i + 3 * i + 1) % v for i in range(n)]])).logits[0].numpy()
print("transformers", transformers.__version__, {k: sorted(x) for k, x in info.items() if x}, "tokens", len(AutoTokenizer.from_pretrained(hf)))
print("logits: max abs diff", float(np.abs(out - ref).max()), "argmax equal", bool((out.argmax(-1) == ref.argmax(-1)).all()))
