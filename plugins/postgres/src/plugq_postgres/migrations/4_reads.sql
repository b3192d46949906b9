-- Jobs as they stand, each at the place where it was asked for. With p_look there is one row alone,
-- of place 0, where something is to be moved in first.
CREATE FUNCTION get_v1(p_namespace integer, p_clock double precision, p_queues bytea[],
    p_ids bytea[], p_body boolean, p_look boolean)
RETURNS TABLE (
    n bigint, now double precision, queue_name bytea, task_name bytea, place bigint, queue integer,
    id bytea, task integer, state smallint, generation bigint, submission bytea, priority bigint,
    lane bytea, batch bytea, attempt bigint, max_attempts bigint, crashes bigint, token bigint,
    worker bytea, submitted_at double precision, ready_at double precision, started_at double
    precision, finished_at double precision, expires_at double precision, deadline_at double
    precision, lease_until double precision, cancel boolean, progress bytea, code bytea,
    result_ttl double precision, history bytea[], result bytea, body bytea
)
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off SET enable_sort = off
SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
SET jit = off AS $$
#variable_conflict use_column
DECLARE
    moment double precision := now_v1(p_namespace, p_clock);
BEGIN
    IF p_look AND EXISTS (SELECT 1 FROM inbox WHERE inbox.namespace = p_namespace
            AND inbox.queue = ANY (p_queues)) THEN
        n := 0;
        RETURN NEXT;
        RETURN;
    END IF;
    RETURN QUERY SELECT s.n, moment, q.name, t.name, j.*
    FROM unnest(p_queues, p_ids) WITH ORDINALITY AS s (queue, id, n)
        CROSS JOIN LATERAL (
            SELECT * FROM queue WHERE queue.namespace = p_namespace AND queue.name = s.queue OFFSET 0
        ) q
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

-- Every queue that something was said of, once for each of its tasks, all as of one moment. With
-- p_look there is one row without a time where something is to be moved in first.
CREATE FUNCTION stats_v1(p_namespace integer, p_clock double precision, p_look boolean)
RETURNS TABLE (
    now double precision, queue bytea, paused boolean, draining boolean, configured boolean,
    max_running bigint, lane_max_running bigint, max_length bigint, limits bytea,
    lane_limits bytea, oldest double precision, task bytea, kinds smallint[], counts bigint[],
    run_seconds double precision, run_count bigint, rate double precision,
    rate_at double precision
)
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off SET enable_sort = off
SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
SET jit = off AS $$
#variable_conflict use_column
DECLARE
    moment double precision := now_v1(p_namespace, p_clock);
BEGIN
    IF p_look AND EXISTS (SELECT 1 FROM inbox WHERE inbox.namespace = p_namespace) THEN
        RETURN NEXT;
        RETURN;
    END IF;
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
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off SET enable_sort = off
SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
SET jit = off AS $$
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

-- When time next makes something due in a namespace, by the indexes; p_end says whether leases that
-- lapse count, p_grace how long after its deadline a running job is ended.
CREATE FUNCTION next_v1(p_namespace integer, p_end boolean, p_grace double precision)
RETURNS double precision LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (
        SELECT least(
            (SELECT ready_at FROM job WHERE namespace = p_namespace AND state = 0
                ORDER BY ready_at LIMIT 1),
            (SELECT tidy_at FROM done WHERE namespace = p_namespace AND tidy_at IS NOT NULL
                ORDER BY tidy_at LIMIT 1),
            (SELECT expires FROM register WHERE namespace = p_namespace AND expires IS NOT NULL
                ORDER BY expires LIMIT 1),
            (SELECT until FROM unique_key WHERE namespace = p_namespace AND until IS NOT NULL
                ORDER BY until LIMIT 1),
            (SELECT deadline_at FROM job WHERE namespace = p_namespace AND state < 2
                AND deadline_at IS NOT NULL ORDER BY deadline_at LIMIT 1),
            CASE WHEN p_end THEN (SELECT lease_until FROM job
                WHERE namespace = p_namespace AND state = 2 ORDER BY lease_until LIMIT 1) END,
            CASE WHEN p_end THEN (SELECT deadline_at FROM job WHERE namespace = p_namespace
                AND state = 2 AND deadline_at IS NOT NULL ORDER BY deadline_at LIMIT 1) + p_grace END
        )
    );
END $$;

-- Whether a sweep has anything to do, and in which queues, looked at without a lock, and when the
-- next one has. Of each kind it looks at p_limit rows, but at none of the queues p_held. With p_look
-- nothing but "waits" is answered where something is to be moved in first.
CREATE FUNCTION look_v1(p_namespace integer, p_clock double precision, p_end boolean,
    p_grace double precision, p_limit bigint, p_held integer[], p_look boolean,
    OUT now double precision, OUT next double precision, OUT work boolean, OUT queues integer[],
    OUT listened boolean, OUT waits boolean)
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off SET enable_sort = off
SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
SET jit = off AS $$
BEGIN
    now := now_v1(p_namespace, p_clock);
    waits := p_look AND EXISTS (SELECT 1 FROM inbox WHERE inbox.namespace = p_namespace);
    IF waits THEN
        RETURN;
    END IF;
    next := next_v1(p_namespace, p_end, p_grace);
    listened := listened_v1(p_namespace);
    queues := ARRAY(SELECT DISTINCT s.queue FROM (
        (SELECT queue FROM job WHERE namespace = p_namespace AND state = 0
            AND ready_at <= look_v1.now AND queue <> ALL (p_held)
            ORDER BY ready_at, place LIMIT p_limit)
        UNION ALL
        (SELECT queue FROM job WHERE namespace = p_namespace AND state < 2
            AND deadline_at <= look_v1.now AND queue <> ALL (p_held)
            ORDER BY deadline_at LIMIT p_limit)
        UNION ALL
        (SELECT queue FROM job WHERE p_end AND namespace = p_namespace AND state = 2
            AND lease_until <= look_v1.now AND queue <> ALL (p_held)
            ORDER BY lease_until LIMIT p_limit)
        UNION ALL
        (SELECT queue FROM job WHERE p_end AND namespace = p_namespace AND state = 2
            AND deadline_at <= look_v1.now - p_grace AND queue <> ALL (p_held)
            ORDER BY deadline_at LIMIT p_limit)
        UNION ALL
        (SELECT queue FROM done WHERE namespace = p_namespace AND tidy_at <= look_v1.now
            AND queue <> ALL (p_held) ORDER BY tidy_at LIMIT p_limit)
        UNION ALL
        (SELECT queue FROM unique_key WHERE namespace = p_namespace AND until <= look_v1.now
            AND queue <> ALL (p_held) ORDER BY until LIMIT p_limit)
        UNION ALL
        (SELECT queue FROM budget WHERE namespace = p_namespace AND expires <= look_v1.now
            AND queue <> ALL (p_held) ORDER BY expires LIMIT p_limit)
        UNION ALL
        (SELECT queue FROM lane WHERE namespace = p_namespace AND parked_until <= look_v1.now
            AND queue <> ALL (p_held) ORDER BY parked_until LIMIT p_limit)
        UNION ALL
        (SELECT id FROM queue WHERE namespace = p_namespace AND parked_until <= look_v1.now
            AND id <> ALL (p_held) ORDER BY parked_until LIMIT p_limit)
        UNION ALL
        -- Where somebody idles although jobs are ready, he is woken.
        (SELECT q.id FROM (SELECT DISTINCT unnest(p.queues) AS id FROM peer p
                WHERE p.namespace = p_namespace AND (p.woken = 0 OR p.woken <= look_v1.now - 1)
            ) w JOIN queue q ON q.id = w.id
            WHERE q.id <> ALL (p_held) AND NOT q.paused AND q.parked_until IS NULL AND (
                SELECT true FROM job WHERE job.queue = q.id AND state = 1 AND eligible = 1 LIMIT 1
            ) AND room_v1(q.id) > 0)
    ) s);
    work := coalesce(next <= now, false) OR queues <> '{}'
        OR EXISTS (SELECT 1 FROM batch WHERE namespace = p_namespace
            AND expires <= look_v1.now)
        OR EXISTS (SELECT 1 FROM claimed WHERE namespace = p_namespace AND until <= look_v1.now)
        OR EXISTS (SELECT 1 FROM peer p WHERE p.namespace = p_namespace
            AND NOT alive_v1(p.pid, p.started))
        OR EXISTS (SELECT 1 FROM listener l WHERE l.namespace = p_namespace
            AND NOT alive_v1(l.pid, l.started));
END $$;
