"""
Pure torch, no RETURNN, no model: CTC scores, recombination, top-k and backtracking, blank collapse, prior.

Everywhere: B utterances, K hypotheses of each, T frames, V labels (0 ... V-1, EOS among them), blank = V, so that CTC
log-probs have V + 1 entries. Natural logarithms. -inf is the score of what is impossible; nothing is ever NaN.
"""
