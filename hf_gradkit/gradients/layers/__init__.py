"""Per-row gradients of one layer type a file: pure functions of a layer's inputs and its output gradients.

Letters: `r` row (an example, or an answer), `t` token, `i` inputs and `o` outputs of a layer, `v` vocabulary; `x`
inputs (r, t, i), `g` gradients of the loss by the outputs (r, t, o). A row's gradient is a sum over its tokens:
padding has g = 0 and adds nothing. None of these knows of models or hooks.
"""
