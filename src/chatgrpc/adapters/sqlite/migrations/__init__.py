"""The schema, as numbered steps (`0001_initial.sql`, …). A released step is never changed; a change is a new step."""
