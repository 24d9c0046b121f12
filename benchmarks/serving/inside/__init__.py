"""What runs inside the peers' own environments: nothing of ours is imported here."""
