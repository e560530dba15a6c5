-- The centre's tables. migrations/sqlite holds the same ones in SQLite's types; a test
-- compares the two. Times are microseconds since 1970 UTC (0: none), hashes lower-case hex.
-- +goose Up
CREATE TABLE head (
    name  TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    value BIGINT           NOT NULL,
    hash  TEXT COLLATE "C" NOT NULL
) WITH (fillfactor = 20);
INSERT INTO head (name, value, hash) VALUES
    ('registry', 0, ''),
    ('policy', 0, ''),
    ('revocation', 0, ''),
    ('audit', 0, '0000000000000000000000000000000000000000000000000000000000000000');

CREATE TABLE revision (
    revision   BIGINT           NOT NULL PRIMARY KEY,
    applied_at BIGINT           NOT NULL,
    who        TEXT COLLATE "C" NOT NULL,
    why        TEXT COLLATE "C" NOT NULL,
    added      BIGINT           NOT NULL,
    changed    BIGINT           NOT NULL,
    removed    BIGINT           NOT NULL,
    hash       TEXT COLLATE "C" NOT NULL
);

-- One row a version of an object: in force from revision "since" until, but not in, "until".
CREATE TABLE object (
    kind  TEXT COLLATE "C" NOT NULL,
    name  TEXT COLLATE "C" NOT NULL,
    since BIGINT           NOT NULL REFERENCES revision (revision),
    until BIGINT           REFERENCES revision (revision),
    hash  TEXT COLLATE "C" NOT NULL,
    value TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (kind, name, since)
);
CREATE UNIQUE INDEX object_current ON object (kind, name) WHERE until IS NULL;
CREATE INDEX object_since ON object (since);
CREATE INDEX object_until ON object (until) WHERE until IS NOT NULL;

CREATE TABLE certificate (
    service        TEXT COLLATE "C" NOT NULL,
    issuer         TEXT COLLATE "C" NOT NULL,
    serial         TEXT COLLATE "C" NOT NULL,
    device         TEXT COLLATE "C" NOT NULL,
    key_hash       TEXT COLLATE "C" NOT NULL,
    not_before     BIGINT           NOT NULL,
    not_after      BIGINT           NOT NULL,
    issued_at      BIGINT           NOT NULL,
    request        TEXT COLLATE "C" NOT NULL,
    der            BYTEA            NOT NULL,
    revoked_at     BIGINT,
    revoked_reason BIGINT,
    PRIMARY KEY (service, issuer, serial)
);
-- A device has at most one certificate of a service that no end has been set to.
CREATE UNIQUE INDEX certificate_current ON certificate (service, device) WHERE revoked_at IS NULL;
CREATE INDEX certificate_device ON certificate (device, service, issued_at);
CREATE INDEX certificate_key_hash ON certificate (service, key_hash, issued_at);
CREATE INDEX certificate_revoked ON certificate (service, issuer, revoked_at) WHERE revoked_at IS NOT NULL;
CREATE INDEX certificate_expiry ON certificate (not_after);

CREATE TABLE request (
    hash       TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    service    TEXT COLLATE "C" NOT NULL,
    device     TEXT COLLATE "C" NOT NULL,
    seen_at    BIGINT           NOT NULL,
    keep_until BIGINT           NOT NULL
);
CREATE INDEX request_keep ON request (keep_until);

CREATE TABLE policy (
    device     TEXT COLLATE "C" NOT NULL,
    serial     BIGINT           NOT NULL,
    seq        BIGINT           NOT NULL UNIQUE,
    hash       TEXT COLLATE "C" NOT NULL,
    revision   BIGINT           NOT NULL,
    signer     TEXT COLLATE "C" NOT NULL,
    created_at BIGINT           NOT NULL,
    not_after  BIGINT           NOT NULL,
    jws_hash   TEXT COLLATE "C" NOT NULL,
    jws        BYTEA            NOT NULL,
    PRIMARY KEY (device, serial)
);

-- The newest policy of each device: what the devices that wait are compared with.
CREATE TABLE policy_head (
    device     TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    serial     BIGINT           NOT NULL,
    seq        BIGINT           NOT NULL UNIQUE,
    hash       TEXT COLLATE "C" NOT NULL,
    revision   BIGINT           NOT NULL,
    created_at BIGINT           NOT NULL,
    not_after  BIGINT           NOT NULL,
    jws_hash   TEXT COLLATE "C" NOT NULL
);
CREATE INDEX policy_head_expiry ON policy_head (not_after);

CREATE TABLE report (
    device        TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    seen_at       BIGINT           NOT NULL,
    version       TEXT COLLATE "C" NOT NULL,
    policy_serial BIGINT           NOT NULL,
    not_after     BIGINT           NOT NULL,
    connections   TEXT COLLATE "C" NOT NULL,
    errors        TEXT COLLATE "C" NOT NULL
);
CREATE INDEX report_seen ON report (seen_at);

CREATE TABLE audit (
    seq    BIGINT           NOT NULL PRIMARY KEY,
    at     BIGINT           NOT NULL,
    event  TEXT COLLATE "C" NOT NULL,
    who    TEXT COLLATE "C" NOT NULL,
    what   TEXT COLLATE "C" NOT NULL,
    place  TEXT COLLATE "C" NOT NULL,
    result TEXT COLLATE "C" NOT NULL,
    detail TEXT COLLATE "C" NOT NULL,
    prev   TEXT COLLATE "C" NOT NULL,
    hash   TEXT COLLATE "C" NOT NULL
);
-- +goose StatementBegin
CREATE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the record is only ever appended to';
END;
$$;
-- +goose StatementEnd
CREATE TRIGGER audit_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only();

-- Work to do: "wanted" is asked for, "done" is what was finished; "due" is when somebody may
-- take it: for taken work, the end of the lease.
CREATE TABLE job (
    kind     TEXT COLLATE "C" NOT NULL,
    item     TEXT COLLATE "C" NOT NULL,
    wanted   BIGINT           NOT NULL,
    done     BIGINT           NOT NULL,
    due      BIGINT           NOT NULL,
    token    BIGINT           NOT NULL,
    holder   TEXT COLLATE "C" NOT NULL,
    attempts BIGINT           NOT NULL,
    error    TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (kind, item)
);
CREATE INDEX job_due ON job (kind, due, item) WHERE wanted > done;
