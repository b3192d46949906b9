-- Names are any text, with NUL characters too, and so are kept as the bytes of their UTF-8. Numbers
-- are random: clients remember them, and one that a failover has lost must not come to mean another
-- name.
CREATE TABLE namespace (
    id integer PRIMARY KEY DEFAULT (1 + floor(random() * 2147483646))::integer,
    name bytea NOT NULL UNIQUE,
    -- The latest time that a change of registers saw.
    now double precision NOT NULL DEFAULT 0
);

CREATE TABLE task (
    id integer PRIMARY KEY DEFAULT (1 + floor(random() * 2147483646))::integer,
    name bytea NOT NULL UNIQUE
);

-- The row of a queue is what its writers lock. "said" is false while only claims have named it.
CREATE TABLE queue (
    id integer PRIMARY KEY DEFAULT (1 + floor(random() * 2147483646))::integer,
    namespace integer NOT NULL,
    name bytea NOT NULL,
    now double precision NOT NULL DEFAULT 0,
    token bigint NOT NULL DEFAULT 0,
    said boolean NOT NULL DEFAULT false,
    paused boolean NOT NULL DEFAULT false,
    draining boolean NOT NULL DEFAULT false,
    configured boolean NOT NULL DEFAULT false,
    max_running bigint,
    lane_max_running bigint NOT NULL DEFAULT 1,
    max_length bigint,
    limits bytea NOT NULL DEFAULT '',
    lane_limits bytea NOT NULL DEFAULT '',
    revision integer NOT NULL DEFAULT 0,
    parked_until double precision,
    UNIQUE (namespace, name)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
-- Of no use to whoever looks for a name, so that no plan takes it for one that is.
CREATE INDEX queue_now ON queue ((namespace::bigint), now);
CREATE INDEX queue_parked ON queue (namespace, parked_until) WHERE parked_until IS NOT NULL;

-- Jobs by sequence, versions of registers and of limiter states.
CREATE SEQUENCE job_sequence;
CREATE SEQUENCE version_sequence;

-- state: 0 delayed, 1 queued, 2 running, 3 succeeded, 4 failed, 5 cancelled, 6 skipped.
-- eligible: 1 in the ready order, 0 behind its lane, 2 past its deadline until a sweep ends it.
-- "seq" is the key of the row, "place" the sequence that users see; they differ where a restored
-- job brought a sequence of its own, which only its namespace has to have free.
CREATE TABLE job (
    seq bigint PRIMARY KEY,
    place bigint NOT NULL,
    namespace integer NOT NULL,
    queue integer NOT NULL,
    task integer NOT NULL,
    state smallint NOT NULL,
    eligible smallint NOT NULL,
    cancel boolean NOT NULL DEFAULT false,
    priority bigint NOT NULL,
    ready_at double precision NOT NULL,
    token bigint NOT NULL DEFAULT 0,
    attempt bigint NOT NULL DEFAULT 0,
    max_attempts bigint NOT NULL,
    crashes bigint NOT NULL DEFAULT 0,
    generation bigint NOT NULL DEFAULT 0,
    unknown bigint NOT NULL DEFAULT 0,
    unknown_since double precision,
    number bigint,
    entered bigint,
    lease_until double precision,
    deadline_at double precision,
    submitted_at double precision NOT NULL,
    started_at double precision,
    finished_at double precision,
    expires_at double precision,
    tidy_at double precision,
    result_ttl double precision,
    failure_ttl double precision,
    id_ttl double precision NOT NULL,
    unique_ttl double precision,
    unique_mode smallint,
    id bytea NOT NULL,
    submission bytea NOT NULL,
    lane bytea,
    batch bytea,
    unique_key bytea,
    origin bytea NOT NULL DEFAULT '',
    worker bytea NOT NULL DEFAULT '',
    peer bytea NOT NULL DEFAULT '',
    code bytea NOT NULL DEFAULT '',
    progress bytea,
    history bytea[],
    body bytea NOT NULL,
    result bytea
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);

-- Jobs that have ended leave the table that claims read and come here, row by row as they are.
CREATE TABLE done (LIKE job INCLUDING DEFAULTS, PRIMARY KEY (seq))
WITH (autovacuum_vacuum_scale_factor = 0.05);

CREATE UNIQUE INDEX job_place ON job (namespace, place);
CREATE UNIQUE INDEX done_place ON done (namespace, place);
CREATE UNIQUE INDEX job_id ON job (queue, id);
CREATE INDEX job_ready ON job (queue, priority DESC, ready_at, place)
    WHERE state = 1 AND eligible = 1;
CREATE INDEX job_due ON job (queue, ready_at, place) WHERE state = 0;
CREATE INDEX job_soon ON job (namespace, ready_at, place) WHERE state = 0;
CREATE INDEX job_lane ON job (queue, lane, priority DESC, ready_at, place)
    WHERE state = 1 AND eligible < 2 AND lane IS NOT NULL;
CREATE INDEX job_head ON job (queue, lane)
    WHERE state = 1 AND eligible = 1 AND lane IS NOT NULL;
CREATE INDEX job_lease ON job (namespace, lease_until) WHERE state = 2;
CREATE INDEX job_worker ON job (namespace, worker, number) WHERE state = 2;
CREATE INDEX job_deadline ON job (namespace, deadline_at)
    WHERE state < 2 AND deadline_at IS NOT NULL;
CREATE INDEX job_overrun ON job (namespace, deadline_at)
    WHERE state = 2 AND deadline_at IS NOT NULL;
CREATE INDEX job_batch ON job (namespace, batch, place) WHERE batch IS NOT NULL;
CREATE UNIQUE INDEX done_id ON done (queue, id);
CREATE INDEX done_tidy ON done (namespace, tidy_at) WHERE tidy_at IS NOT NULL;
CREATE INDEX done_batch ON done (namespace, batch, place) WHERE batch IS NOT NULL;

-- What users submit in transactions of their own, until somebody who holds the lock of the queue
-- moves it in. Names are not numbers here, since to give one may make others wait. Nothing is
-- unique but "n", the order of submission, and nothing refers to it: no insert waits for another.
CREATE SEQUENCE inbox_sequence;
CREATE TABLE inbox (
    n bigint NOT NULL DEFAULT nextval('inbox_sequence'),
    namespace integer NOT NULL,
    queue bytea NOT NULL,
    task bytea NOT NULL,
    submitted_at double precision NOT NULL,
    priority bigint NOT NULL,
    delay double precision NOT NULL,
    run_at double precision,
    deadline_in double precision,
    deadline_at double precision,
    max_attempts bigint NOT NULL,
    result_ttl double precision,
    failure_ttl double precision,
    id_ttl double precision NOT NULL,
    unique_ttl double precision,
    unique_mode smallint,
    id bytea NOT NULL,
    submission bytea NOT NULL,
    lane bytea,
    batch bytea,
    unique_key bytea,
    origin bytea NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (namespace, queue, n)
) WITH (autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX inbox_id ON inbox (namespace, queue, id, n);
CREATE INDEX inbox_key ON inbox (namespace, queue, unique_key, n) WHERE unique_key IS NOT NULL;

-- Counts of a task in a queue. kind: 0 to 6 the states, from 7 on the cumulative totals.
CREATE TABLE tally (
    queue integer NOT NULL,
    task integer NOT NULL,
    kind smallint NOT NULL,
    n bigint NOT NULL,
    PRIMARY KEY (queue, task, kind)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- Seconds that ended attempts ran, how many these were, and the decaying rate of ends.
CREATE TABLE pace (
    queue integer NOT NULL,
    task integer NOT NULL,
    run_seconds double precision NOT NULL,
    run_count bigint NOT NULL,
    rate double precision NOT NULL,
    rate_at double precision NOT NULL,
    PRIMARY KEY (queue, task)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- Lanes of which jobs run, and parked ones.
CREATE TABLE lane (
    namespace integer NOT NULL,
    queue integer NOT NULL,
    name bytea NOT NULL,
    running bigint NOT NULL,
    parked_until double precision,
    PRIMARY KEY (queue, name)
);
CREATE INDEX lane_parked ON lane (queue, parked_until, name) WHERE parked_until IS NOT NULL;
CREATE INDEX lane_soon ON lane (namespace, parked_until) WHERE parked_until IS NOT NULL;

CREATE TABLE unique_key (
    namespace integer NOT NULL,
    queue integer NOT NULL,
    key bytea NOT NULL,
    seq bigint NOT NULL,
    place bigint NOT NULL,
    id bytea NOT NULL,
    generation bigint NOT NULL,
    state smallint NOT NULL,
    until double precision,
    PRIMARY KEY (queue, key)
);
CREATE INDEX unique_until ON unique_key (namespace, until) WHERE until IS NOT NULL;

-- Claims that granted leases and may be asked again.
CREATE TABLE claimed (
    namespace integer NOT NULL,
    worker bytea NOT NULL,
    number bigint NOT NULL,
    until double precision NOT NULL,
    PRIMARY KEY (namespace, worker, number)
);
CREATE INDEX claimed_until ON claimed (namespace, until);

-- Jobs by state, also of those that are gone; "expires" while none of them is live. Counted are
-- those that entered at the sequence "since" or after it.
CREATE TABLE batch (
    namespace integer NOT NULL,
    name bytea NOT NULL,
    delayed bigint NOT NULL,
    queued bigint NOT NULL,
    running bigint NOT NULL,
    succeeded bigint NOT NULL,
    failed bigint NOT NULL,
    cancelled bigint NOT NULL,
    skipped bigint NOT NULL,
    since bigint NOT NULL,
    expires double precision,
    PRIMARY KEY (namespace, name)
);
CREATE INDEX batch_expires ON batch (namespace, expires) WHERE expires IS NOT NULL;

-- The state of the limiters of a queue (kind 0, lane '') or of one of its lanes (kind 1).
CREATE TABLE budget (
    namespace integer NOT NULL,
    queue integer NOT NULL,
    kind smallint NOT NULL,
    lane bytea NOT NULL,
    version bigint NOT NULL,
    state bytea,
    expires double precision NOT NULL,
    PRIMARY KEY (queue, kind, lane)
);
CREATE INDEX budget_expires ON budget (namespace, expires);

CREATE TABLE register (
    namespace integer NOT NULL,
    key bytea NOT NULL,
    version bigint NOT NULL,
    value bytea NOT NULL,
    expires double precision,
    PRIMARY KEY (namespace, key)
);
CREATE INDEX register_expires ON register (namespace, expires) WHERE expires IS NOT NULL;

-- Who watches, on which channel, and by which server process: one that is gone hears nothing. Numbers
-- of processes come again, so that the time at which it started goes with it.
-- "since" is when it ran out of work, 0 for one that has work; "queues" are those it waits for;
-- "woken" is when it was told of work, until it claims.
CREATE TABLE peer (
    namespace integer NOT NULL,
    name bytea NOT NULL,
    channel text NOT NULL,
    pid integer NOT NULL,
    started timestamptz NOT NULL,
    queues integer[] NOT NULL DEFAULT '{}',
    since double precision NOT NULL DEFAULT 0,
    woken double precision NOT NULL DEFAULT 0,
    PRIMARY KEY (namespace, name)
);

CREATE TABLE listener (
    namespace integer NOT NULL,
    channel text NOT NULL,
    pid integer NOT NULL,
    started timestamptz NOT NULL,
    PRIMARY KEY (namespace, channel)
);
