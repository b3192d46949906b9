-- Jobs as they stand, each at the place where it was asked for.
CREATE FUNCTION get_v1(p_namespace integer, p_clock double precision, p_queues bytea[],
    p_ids bytea[], p_body boolean)
RETURNS TABLE (
    n bigint, now double precision, queue_name bytea, task_name bytea, place bigint, queue integer,
    id bytea, task integer, state smallint, generation bigint, submission bytea, priority bigint,
    lane bytea, batch bytea, attempt bigint, max_attempts bigint, crashes bigint, token bigint,
    worker bytea, submitted_at double precision, ready_at double precision, started_at double
    precision, finished_at double precision, expires_at double precision, deadline_at double
    precision, lease_until double precision, cancel boolean, progress bytea, code bytea,
    result_ttl double precision, history bytea[], result bytea, body bytea
)
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    moment double precision := now_v1(p_namespace, p_clock);
BEGIN
    RETURN QUERY SELECT s.n, moment, q.name, t.name, j.*
    FROM unnest(p_queues, p_ids) WITH ORDINALITY AS s (queue, id, n)
        JOIN queue q ON q.namespace = p_namespace AND q.name = s.queue
        CROSS JOIN LATERAL (
            SELECT a.place, a.queue, a.id, a.task, a.state, a.generation, a.submission, a.priority, a.lane,
            a.batch, a.attempt, a.max_attempts, a.crashes, a.token, a.worker, a.submitted_at,
            a.ready_at, a.started_at, a.finished_at, a.expires_at, a.deadline_at, a.lease_until,
            a.cancel, a.progress, a.code, a.result_ttl, a.history, a.result, CASE WHEN p_body THEN
            a.body END
            FROM job a WHERE a.queue = q.id AND a.id = s.id
            UNION ALL
            SELECT a.place, a.queue, a.id, a.task, a.state, a.generation, a.submission, a.priority, a.lane,
            a.batch, a.attempt, a.max_attempts, a.crashes, a.token, a.worker, a.submitted_at,
            a.ready_at, a.started_at, a.finished_at, a.expires_at, a.deadline_at, a.lease_until,
            a.cancel, a.progress, a.code, a.result_ttl, a.history, a.result, CASE WHEN p_body THEN
            a.body END
            FROM done a WHERE a.queue = q.id AND a.id = s.id
        ) j JOIN task t ON t.id = j.task;
END $$;

-- The ready time of the oldest job that could start: the first of each priority is found one after
-- the other, so that the jobs between cost nothing.
CREATE FUNCTION oldest_v1(p_queue integer) RETURNS double precision LANGUAGE sql STABLE AS $$
    WITH RECURSIVE level (priority, ready_at) AS (
        (SELECT priority, ready_at FROM job WHERE queue = p_queue AND state = 1 AND eligible = 1
            ORDER BY priority DESC, ready_at, place LIMIT 1)
        UNION ALL
        SELECT n.priority, n.ready_at FROM level CROSS JOIN LATERAL (
            SELECT job.priority, job.ready_at FROM job WHERE job.queue = p_queue AND state = 1
                AND eligible = 1 AND job.priority < level.priority
            ORDER BY job.priority DESC, job.ready_at, job.place LIMIT 1
        ) n
    )
    SELECT min(ready_at) FROM level
$$;

-- Every queue that something was said of, once for each of its tasks, all as of one moment.
CREATE FUNCTION stats_v1(p_namespace integer, p_clock double precision)
RETURNS TABLE (
    now double precision, queue bytea, paused boolean, draining boolean, configured boolean,
    max_running bigint, lane_max_running bigint, max_length bigint, limits bytea,
    lane_limits bytea, oldest double precision, task bytea, kinds smallint[], counts bigint[],
    run_seconds double precision, run_count bigint, rate double precision,
    rate_at double precision
)
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    moment double precision := now_v1(p_namespace, p_clock);
BEGIN
    RETURN QUERY SELECT moment, q.name, q.paused, q.draining, q.configured, q.max_running,
        q.lane_max_running, q.max_length, q.limits, q.lane_limits,
        (SELECT oldest_v1(q.id)), t.name, c.kinds, c.counts,
        p.run_seconds, p.run_count, p.rate, p.rate_at
    FROM (SELECT 1) one LEFT JOIN queue q ON q.namespace = p_namespace AND q.said
        LEFT JOIN LATERAL (
            SELECT tally.task, array_agg(tally.kind) AS kinds, array_agg(tally.n) AS counts
            FROM tally WHERE tally.queue = q.id GROUP BY tally.task
        ) c ON true
        LEFT JOIN task t ON t.id = c.task
        LEFT JOIN pace p ON p.queue = q.id AND p.task = c.task
    ORDER BY q.name, t.name;
END $$;

-- Make all changes of registers or none, one version after the other.
CREATE FUNCTION swap_v1(p_namespace integer, p_clock double precision, p_wait text,
    p_keys bytea[], p_expect bigint[], p_values bytea[], p_ttls double precision[],
    OUT now double precision, OUT done boolean, OUT versions bigint[], OUT stored bytea[])
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off SET jit = off AS $$
DECLARE
    version bigint;
BEGIN
    PERFORM set_config('lock_timeout', p_wait, true);
    PERFORM 1 FROM namespace WHERE id = p_namespace FOR NO KEY UPDATE;
    now := now_v1(p_namespace, p_clock);
    done := NOT EXISTS (
        SELECT 1 FROM unnest(p_keys, p_expect) AS s (key, expect) LEFT JOIN register r
            ON r.namespace = p_namespace AND r.key = s.key
            AND (r.expires IS NULL OR r.expires > swap_v1.now)
        WHERE s.expect <> coalesce(r.version, 0)
    );
    IF done AND p_keys <> '{}' THEN
        UPDATE namespace SET now = swap_v1.now WHERE id = p_namespace;
        FOR n IN 1 .. array_length(p_keys, 1) LOOP
            IF p_values[n] IS NULL THEN
                DELETE FROM register WHERE namespace = p_namespace AND key = p_keys[n];
            ELSE
                version := nextval('version_sequence');
                INSERT INTO register AS r VALUES (p_namespace, p_keys[n], version, p_values[n],
                    swap_v1.now + p_ttls[n])
                ON CONFLICT (namespace, key) DO UPDATE SET version = excluded.version,
                    value = excluded.value, expires = excluded.expires;
            END IF;
        END LOOP;
    END IF;
    SELECT array_agg(r.version ORDER BY s.n), array_agg(r.value ORDER BY s.n)
    INTO versions, stored
    FROM unnest(p_keys) WITH ORDINALITY AS s (key, n) LEFT JOIN register r
        ON r.namespace = p_namespace AND r.key = s.key
        AND (r.expires IS NULL OR r.expires > swap_v1.now);
END $$;
