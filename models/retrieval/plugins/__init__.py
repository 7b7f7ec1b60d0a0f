"""Components that compose with several bases: one file each."""
