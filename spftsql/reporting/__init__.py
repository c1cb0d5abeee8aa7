"""What a run says about itself: where it stands, what it cost, and the page about it. Reads only."""
