"""The director: one elected replica turns load and health into what each node should do."""
