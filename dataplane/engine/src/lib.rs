//! The packet path: rule tables, flow cache, pinned workers, API server.
