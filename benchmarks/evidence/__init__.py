"""The evidence: every claim about quality, measured by a protocol written down first."""
