"""A pretrained language model in the same loop as the small policy.

In come weights, a GGUF file or a folder of safetensors; out come a graph and parameters that
`policy.prefill` and `policy.extend` take, so that rollouts, the policy gradient, the loop and
the comparison of strategies are those of `bots_jax.rl`, unchanged:

gguf_file | safetensors_folder -> weights -> llama (model), tokenizer
    -> gym (tasks and verifier) -> finetune (comparison).

It needs the extra `llm`.
"""
