"""The loop: VBI-FT rounds, self-play, gate and table."""
