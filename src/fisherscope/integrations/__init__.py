"""Where other libraries meet this one: Trainer callbacks, adapters, the hub."""
