"""Finding out how a TorchScript model runs fastest here: measuring, recording, applying. The
command needs no torch in its process; an interpreter of ours measures."""
