"""What the rules need from the outside, as protocols with written guarantees."""
