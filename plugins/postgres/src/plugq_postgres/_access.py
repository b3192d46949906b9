"""What a user of the server has to be allowed, as statements for whoever owns the schema."""

from __future__ import annotations

from plugq_postgres._options import quoted


def grants(schema: str = "plugq", role: str = "<user>") -> str:
    """Return the statements that let a role submit and run jobs, and not migrate."""
    name = quoted(schema)
    return (
        f"GRANT USAGE ON SCHEMA {name} TO {role}; "
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {name} TO {role}; "
        f"GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA {name} TO {role}; "
        f"GRANT EXECUTE ON FUNCTION {name}.submit_within_v1 TO {role};"
    )
