"""Speed and memory on this machine: each subject checks its contestants against float64, then times them in turns."""
