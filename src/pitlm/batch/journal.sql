-- Opens the journal of a job for one process. With an exclusive lock SQLite needs no shared memory.
-- So the journal works on network file systems that have locks.
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS settings (content TEXT);
CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, digest TEXT, failed INTEGER, line TEXT);
