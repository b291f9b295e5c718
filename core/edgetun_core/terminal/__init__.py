"""What edgetun's commands show on a terminal. Imports rich, so it is imported only where something is shown."""
