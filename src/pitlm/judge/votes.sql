-- The file of votes. Its application_id is that of pitlm.judge.votes.
PRAGMA journal_mode = WAL;
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS secret (seed TEXT NOT NULL);
INSERT INTO secret SELECT lower(hex(randomblob(16))) WHERE NOT EXISTS (SELECT 1 FROM secret);
CREATE TABLE IF NOT EXISTS votes (
    vote INTEGER PRIMARY KEY AUTOINCREMENT,
    comparison TEXT NOT NULL, -- what was compared: item, prompt, both systems and both texts, as a hash
    item TEXT NOT NULL,
    first TEXT NOT NULL, -- the two systems
    second TEXT NOT NULL,
    first_length INTEGER NOT NULL, -- of their answers, in characters
    second_length INTEGER NOT NULL,
    shown_left TEXT NOT NULL CHECK (shown_left IN ('first', 'second')),
    verdict TEXT CHECK (verdict IN ('win', 'tie', 'loss')), -- seen from the first; NULL: the vote was taken back
    rater TEXT NOT NULL,
    seconds REAL, -- from showing to voting
    time TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ'))
);
CREATE INDEX IF NOT EXISTS votes_of_a_rater ON votes (rater, comparison);
PRAGMA application_id = 1346982998;
COMMIT;
