"""Control's side of the exit nodes: who they are, what they are told, what they tell."""
