"""How fast a box is on the machine it runs on: what `llvq bench` measures."""
