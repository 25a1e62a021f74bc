"""Of all tests: nothing is compiled. RETURNN's kernel for rotary positions would take half a minute in each process."""

import os

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
