"""Named methods: each a short chain, or a second-order method."""
