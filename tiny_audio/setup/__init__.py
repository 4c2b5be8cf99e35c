"""Getting started: is this machine ready, and something to listen to."""
