-- The centre's tables. migrations/postgres holds the same ones in PostgreSQL's types; a test
-- compares the two. Times are microseconds since 1970 UTC (0: none), hashes lower-case hex.
-- +goose Up
CREATE TABLE head (
    name  TEXT    NOT NULL PRIMARY KEY,
    value INTEGER NOT NULL,
    hash  TEXT    NOT NULL
) STRICT;
INSERT INTO head (name, value, hash) VALUES
    ('registry', 0, ''),
    ('policy', 0, ''),
    ('revocation', 0, ''),
    ('audit', 0, '0000000000000000000000000000000000000000000000000000000000000000');

CREATE TABLE revision (
    revision   INTEGER NOT NULL PRIMARY KEY,
    applied_at INTEGER NOT NULL,
    who        TEXT    NOT NULL,
    why        TEXT    NOT NULL,
    added      INTEGER NOT NULL,
    changed    INTEGER NOT NULL,
    removed    INTEGER NOT NULL,
    hash       TEXT    NOT NULL
) STRICT;

-- One row a version of an object: in force from revision "since" until, but not in, "until".
CREATE TABLE object (
    kind  TEXT    NOT NULL,
    name  TEXT    NOT NULL,
    since INTEGER NOT NULL REFERENCES revision (revision),
    until INTEGER REFERENCES revision (revision),
    hash  TEXT    NOT NULL,
    value TEXT    NOT NULL,
    PRIMARY KEY (kind, name, since)
) STRICT;
CREATE UNIQUE INDEX object_current ON object (kind, name) WHERE until IS NULL;
CREATE INDEX object_since ON object (since);
CREATE INDEX object_until ON object (until) WHERE until IS NOT NULL;

CREATE TABLE certificate (
    service        TEXT    NOT NULL,
    issuer         TEXT    NOT NULL,
    serial         TEXT    NOT NULL,
    device         TEXT    NOT NULL,
    key_hash       TEXT    NOT NULL,
    not_before     INTEGER NOT NULL,
    not_after      INTEGER NOT NULL,
    issued_at      INTEGER NOT NULL,
    request        TEXT    NOT NULL,
    der            BLOB    NOT NULL,
    revoked_at     INTEGER,
    revoked_reason INTEGER,
    PRIMARY KEY (service, issuer, serial)
) STRICT;
-- A device has at most one certificate of a service that no end has been set to.
CREATE UNIQUE INDEX certificate_current ON certificate (service, device) WHERE revoked_at IS NULL;
CREATE INDEX certificate_device ON certificate (device, service, issued_at);
CREATE INDEX certificate_key_hash ON certificate (service, key_hash, issued_at);
CREATE INDEX certificate_revoked ON certificate (service, issuer, revoked_at) WHERE revoked_at IS NOT NULL;
CREATE INDEX certificate_expiry ON certificate (not_after);

CREATE TABLE request (
    hash       TEXT    NOT NULL PRIMARY KEY,
    service    TEXT    NOT NULL,
    device     TEXT    NOT NULL,
    seen_at    INTEGER NOT NULL,
    keep_until INTEGER NOT NULL
) STRICT;
CREATE INDEX request_keep ON request (keep_until);

CREATE TABLE policy (
    device     TEXT    NOT NULL,
    serial     INTEGER NOT NULL,
    seq        INTEGER NOT NULL UNIQUE,
    hash       TEXT    NOT NULL,
    revision   INTEGER NOT NULL,
    signer     TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    not_after  INTEGER NOT NULL,
    jws_hash   TEXT    NOT NULL,
    jws        BLOB    NOT NULL,
    PRIMARY KEY (device, serial)
) STRICT;

-- The newest policy of each device: what the devices that wait are compared with.
CREATE TABLE policy_head (
    device     TEXT    NOT NULL PRIMARY KEY,
    serial     INTEGER NOT NULL,
    seq        INTEGER NOT NULL UNIQUE,
    hash       TEXT    NOT NULL,
    revision   INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    not_after  INTEGER NOT NULL,
    jws_hash   TEXT    NOT NULL
) STRICT;
CREATE INDEX policy_head_expiry ON policy_head (not_after);

CREATE TABLE report (
    device        TEXT    NOT NULL PRIMARY KEY,
    seen_at       INTEGER NOT NULL,
    version       TEXT    NOT NULL,
    policy_serial INTEGER NOT NULL,
    not_after     INTEGER NOT NULL,
    connections   TEXT    NOT NULL,
    errors        TEXT    NOT NULL
) STRICT;
CREATE INDEX report_seen ON report (seen_at);

CREATE TABLE audit (
    seq    INTEGER NOT NULL PRIMARY KEY,
    at     INTEGER NOT NULL,
    event  TEXT    NOT NULL,
    who    TEXT    NOT NULL,
    what   TEXT    NOT NULL,
    place  TEXT    NOT NULL,
    result TEXT    NOT NULL,
    detail TEXT    NOT NULL,
    prev   TEXT    NOT NULL,
    hash   TEXT    NOT NULL
) STRICT;
-- +goose StatementBegin
CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN
    SELECT RAISE(ABORT, 'the record is only ever appended to');
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN
    SELECT RAISE(ABORT, 'the record is only ever appended to');
END;
-- +goose StatementEnd

-- Work to do: "wanted" is asked for, "done" is what was finished; "due" is when somebody may
-- take it: for taken work, the end of the lease.
CREATE TABLE job (
    kind     TEXT    NOT NULL,
    item     TEXT    NOT NULL,
    wanted   INTEGER NOT NULL,
    done     INTEGER NOT NULL,
    due      INTEGER NOT NULL,
    token    INTEGER NOT NULL,
    holder   TEXT    NOT NULL,
    attempts INTEGER NOT NULL,
    error    TEXT    NOT NULL,
    PRIMARY KEY (kind, item)
) STRICT;
CREATE INDEX job_due ON job (kind, due, item) WHERE wanted > done;
