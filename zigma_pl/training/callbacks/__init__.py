"""Lightning callbacks: averaged weights, preview grids, written samples, throughput."""
