"""Pure torch: no RETURNN, no model. Every function documents its shapes and is tested against brute force."""
