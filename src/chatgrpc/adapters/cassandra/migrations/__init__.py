"""Numbered steps of the schema, `0001_name.cql` and so on: statements that end in `;`, each harmless when it runs again."""
