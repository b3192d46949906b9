-- A move of one job: "total" is the kind of total that it counts for beside its new state, "fresh"
-- says that its batch does not count what it was before.
CREATE TYPE move_v1 AS (
    queue integer, task integer, lane bytea, batch bytea, before smallint, after smallint,
    total smallint, ran double precision, fresh boolean
);
-- So many more jobs of a queue may be claimed; of one that has opened, as many as are ready.
CREATE TYPE ready_v1 AS (queue integer, n bigint, opened boolean);
-- A notice for a peer. kind: 0 wake, 1 finished, 2 cancelling asked for.
CREATE TYPE letter_v1 AS (channel text, peer bytea, kind smallint, queue integer, id bytea);
CREATE TYPE effect_v1 AS (ready ready_v1[], letters letter_v1[]);

-- Lock queues in the order of their numbers, and return the time, which never runs backwards. What
-- the caller remembers of a store that has lost it is refused.
CREATE FUNCTION enter_v1(p_namespace integer, p_clock double precision, p_wait text,
    p_queues integer[]) RETURNS double precision LANGUAGE plpgsql AS $$
DECLARE
    locked integer;
BEGIN
    PERFORM set_config('lock_timeout', p_wait, true);
    PERFORM 1 FROM queue WHERE id = ANY (p_queues) ORDER BY id FOR NO KEY UPDATE;
    GET DIAGNOSTICS locked = ROW_COUNT;
    IF locked <> cardinality(p_queues) THEN
        RAISE EXCEPTION 'the numbers of names are not those of this store' USING ERRCODE = 'PQ002';
    END IF;
    RETURN now_v1(p_namespace, p_clock);
END $$;

-- The time in a namespace. A number of it that the store has lost is refused.
CREATE FUNCTION now_v1(p_namespace integer, p_clock double precision) RETURNS double precision
LANGUAGE plpgsql AS $$
DECLARE
    kept double precision;
BEGIN
    SELECT n.now INTO kept FROM namespace n WHERE n.id = p_namespace;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the numbers of names are not those of this store' USING ERRCODE = 'PQ002';
    END IF;
    RETURN (
        SELECT greatest(
            coalesce(p_clock, extract(epoch FROM clock_timestamp())::double precision),
            (SELECT queue.now FROM queue WHERE queue.namespace::bigint = p_namespace::bigint
                ORDER BY queue.now DESC LIMIT 1),
            kept
        )
    );
END $$;

-- The time, for statements that stand alone.
CREATE FUNCTION clock_v1(p_namespace integer, p_clock double precision) RETURNS double precision
LANGUAGE sql SET search_path FROM CURRENT AS $$ SELECT now_v1(p_namespace, p_clock) $$;

-- Keep the time that a write saw.
CREATE FUNCTION leave_v1(p_now double precision, p_queues integer[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    -- Written so that no plan looks for the queues by their time.
    UPDATE queue SET now = p_now WHERE id = ANY (p_queues) AND greatest(now, p_now) > now;
END $$;

CREATE FUNCTION waiting_v1(p_queue integer) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    RETURN (SELECT coalesce(sum(n), 0)::bigint FROM tally WHERE queue = p_queue AND kind < 2);
END $$;

-- How many more jobs of a queue may run.
CREATE FUNCTION room_v1(p_queue integer) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    RETURN (
        SELECT CASE WHEN max_running IS NULL THEN 9223372036854775807
            ELSE max_running - (SELECT coalesce(sum(n), 0)::bigint FROM tally
                WHERE queue = p_queue AND kind = 2) END
        FROM queue WHERE id = p_queue
    );
END $$;

-- Make the first jobs of each of these lanes eligible, and only those: of the queued jobs of a lane
-- the first "lane_max_running - running", at most p_most, none while it is parked. A claim may
-- therefore take the ready order as it is, and a busy or parked lane costs no claim anything.
CREATE FUNCTION repair_v1(p_queues integer[], p_lanes bytea[], p_most bigint) RETURNS ready_v1[]
LANGUAGE plpgsql AS $$
DECLARE
    let_in ready_v1[];
BEGIN
    WITH touched AS MATERIALIZED (
        SELECT DISTINCT s.queue, s.lane FROM unnest(p_queues, p_lanes) AS s (queue, lane)
    ), free AS MATERIALIZED (
        SELECT t.queue, t.lane, CASE WHEN lane.parked_until IS NOT NULL THEN 0
            ELSE least(p_most, greatest(0, q.lane_max_running - coalesce(lane.running, 0))) END AS n
        FROM touched t
            CROSS JOIN LATERAL (SELECT * FROM queue WHERE queue.id = t.queue OFFSET 0) q
            LEFT JOIN lane ON lane.queue = t.queue AND lane.name = t.lane
    ), first AS MATERIALIZED (
        SELECT f.queue, f.lane, coalesce(j.seqs, '{}') AS seqs, j.behind
        FROM free f CROSS JOIN LATERAL (
            SELECT array_agg(h.seq) AS seqs,
                array_agg(h.seq) FILTER (WHERE h.eligible = 0) AS behind
            FROM (
                SELECT job.seq, job.eligible FROM job
                WHERE job.queue = f.queue AND job.lane = f.lane AND job.state = 1
                    AND job.eligible < 2
                ORDER BY job.priority DESC, job.ready_at, job.place LIMIT f.n
            ) h
        ) j
    ), ahead AS MATERIALIZED (
        SELECT j.seq FROM first CROSS JOIN LATERAL (
            SELECT job.seq FROM job WHERE job.queue = first.queue AND job.lane = first.lane
                AND job.state = 1 AND job.eligible = 1 AND job.seq <> ALL (first.seqs)
        ) j
    ), taken_back AS (
        UPDATE job SET eligible = 0 FROM ahead WHERE job.seq = ahead.seq
    ), entered AS (
        UPDATE job SET eligible = 1 FROM (SELECT unnest(behind) AS seq FROM first) b
        WHERE job.seq = b.seq RETURNING job.queue
    )
    SELECT array_agg(ROW (c.queue, c.n, false)::ready_v1) INTO let_in
    FROM (SELECT queue, count(*) AS n FROM entered GROUP BY queue) c;
    RETURN let_in;
END $$;

-- Count moves by task and by batch, and see to the lanes of the jobs.
CREATE FUNCTION book_v1(p_namespace integer, p_now double precision, p_since bigint,
    p_moves move_v1[]) RETURNS ready_v1[] LANGUAGE plpgsql AS $$
DECLARE
    let_in ready_v1[];
    queues integer[];
    lanes bytea[];
BEGIN
    IF coalesce(array_length(p_moves, 1), 0) = 0 THEN
        RETURN NULL;
    END IF;
    INSERT INTO tally AS t (queue, task, kind, n)
    SELECT m.queue, m.task, c.kind, sum(c.n) FROM unnest(p_moves) AS m CROSS JOIN LATERAL (
        VALUES (m.before, -1), (m.after, 1), (m.total, 1),
            (CASE WHEN m.after > 2 AND m.before < 3 THEN m.after + 6 END, 1)
    ) AS c (kind, n) WHERE c.kind IS NOT NULL
    GROUP BY m.queue, m.task, c.kind HAVING sum(c.n) <> 0 ORDER BY m.queue, m.task, c.kind
    ON CONFLICT (queue, task, kind) DO UPDATE SET n = t.n + excluded.n;
    INSERT INTO pace AS p (queue, task, run_seconds, run_count, rate, rate_at)
    SELECT m.queue, m.task, coalesce(sum(m.ran), 0), count(m.ran),
        count(*) FILTER (WHERE m.after > 2 AND m.before < 3) / 60.0, p_now
    FROM unnest(p_moves) AS m GROUP BY m.queue, m.task
    HAVING count(m.ran) > 0 OR bool_or(m.after > 2 AND m.before < 3)
    ON CONFLICT (queue, task) DO UPDATE SET
        run_seconds = p.run_seconds + excluded.run_seconds,
        run_count = p.run_count + excluded.run_count,
        rate = CASE WHEN excluded.rate = 0 THEN p.rate ELSE excluded.rate
            + p.rate * exp(-least(500, greatest(0, p_now - p.rate_at) / 60.0)) END,
        rate_at = CASE WHEN excluded.rate = 0 THEN p.rate_at ELSE p_now END;
    PERFORM 1 FROM unnest(p_moves) AS m WHERE m.batch IS NOT NULL LIMIT 1;
    IF FOUND THEN
        PERFORM count_batches_v1(p_namespace, p_now, p_since, p_moves);
    END IF;
    SELECT array_agg(m.queue), array_agg(m.lane) INTO queues, lanes
    FROM unnest(p_moves) AS m WHERE m.lane IS NOT NULL;
    IF queues IS NOT NULL THEN
        INSERT INTO lane AS l (namespace, queue, name, running)
        SELECT p_namespace, m.queue, m.lane, sum((m.after IS NOT DISTINCT FROM 2)::integer
            - (m.before IS NOT DISTINCT FROM 2)::integer)
        FROM unnest(p_moves) AS m WHERE m.lane IS NOT NULL AND 2 IN (m.before, m.after)
        GROUP BY m.queue, m.lane
        ON CONFLICT (queue, name) DO UPDATE SET running = l.running + excluded.running;
        DELETE FROM lane USING unnest(queues, lanes) AS s (queue, lane)
        WHERE lane.queue = s.queue AND lane.name = s.lane AND lane.running <= 0
            AND lane.parked_until IS NULL;
        let_in := repair_v1(queues, lanes, 128);
    END IF;
    RETURN let_in || (
        SELECT array_agg(ROW (c.queue, c.n, false)::ready_v1) FROM (
            SELECT m.queue, count(*) AS n FROM unnest(p_moves) AS m
            WHERE m.after = 1 AND m.lane IS NULL GROUP BY m.queue
        ) c
    ) || (
        SELECT array_agg(ROW (c.queue, c.n, true)::ready_v1) FROM (
            SELECT m.queue, count(*) AS n FROM unnest(p_moves) AS m WHERE m.before = 2
            GROUP BY m.queue
            HAVING (SELECT q.max_running FROM queue q WHERE q.id = m.queue) IS NOT NULL
        ) c
    );
END $$;

-- Batches span queues: who counts in them waits for a lock that is taken after those of queues.
CREATE FUNCTION count_batches_v1(p_namespace integer, p_now double precision, p_since bigint,
    p_moves move_v1[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock('batch'::regclass::oid::integer, p_namespace);
    DELETE FROM batch USING unnest(p_moves) AS m
    WHERE batch.namespace = p_namespace AND batch.name = m.batch AND batch.expires <= p_now;
    INSERT INTO batch AS b
    SELECT p_namespace, m.batch,
        sum((c.kind = 0)::integer * c.n), sum((c.kind = 1)::integer * c.n),
        sum((c.kind = 2)::integer * c.n), sum((c.kind = 3)::integer * c.n),
        sum((c.kind = 4)::integer * c.n), sum((c.kind = 5)::integer * c.n),
        sum((c.kind = 6)::integer * c.n), coalesce(p_since, nextval('job_sequence'))
    FROM unnest(p_moves) AS m CROSS JOIN LATERAL (
        VALUES (CASE WHEN NOT coalesce(m.fresh, false) THEN m.before END, -1), (m.after, 1)
    ) AS c (kind, n)
    WHERE m.batch IS NOT NULL AND c.kind IS NOT NULL GROUP BY m.batch
    ON CONFLICT (namespace, name) DO UPDATE SET
        delayed = b.delayed + excluded.delayed, queued = b.queued + excluded.queued,
        running = b.running + excluded.running, succeeded = b.succeeded + excluded.succeeded,
        failed = b.failed + excluded.failed, cancelled = b.cancelled + excluded.cancelled,
        skipped = b.skipped + excluded.skipped, since = least(b.since, excluded.since);
    UPDATE batch SET expires = CASE WHEN delayed + queued + running = 0 THEN p_now + 604800 END
    FROM (SELECT DISTINCT m.batch FROM unnest(p_moves) AS m) s
    WHERE batch.namespace = p_namespace AND batch.name = s.batch;
END $$;

-- Choose whom a call wakes: idle peers, no more than there are jobs for, and not the claimant for
-- the queues that it has just claimed from. A peer that somebody else wakes now is passed over. One
-- that was woken a second ago and has not claimed since may never have heard of it.
CREATE FUNCTION wake_v1(p_namespace integer, p_now double precision, p_ready ready_v1[],
    p_claimant bytea, p_claimed integer[]) RETURNS letter_v1[] LANGUAGE plpgsql AS $$
DECLARE
    r record;
    q queue;
    most bigint;
    letters letter_v1[];
    woken_now letter_v1[];
BEGIN
    IF p_ready IS NULL THEN
        RETURN NULL;
    END IF;
    PERFORM 1 FROM peer WHERE namespace = p_namespace AND queues <> '{}'
        AND (woken = 0 OR woken <= p_now - 1) LIMIT 1;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    FOR r IN SELECT s.queue, coalesce(sum(s.n) FILTER (WHERE NOT s.opened), 0) AS n,
            coalesce(sum(s.n) FILTER (WHERE s.opened), 0) AS opened
        FROM unnest(p_ready) AS s GROUP BY s.queue
    LOOP
        SELECT * INTO q FROM queue WHERE id = r.queue;
        CONTINUE WHEN q.paused OR q.parked_until IS NOT NULL;
        most := least(greatest(r.n, r.opened), room_v1(r.queue), 10000);
        CONTINUE WHEN most <= 0;
        -- What became claimable may have been taken or parked since.
        SELECT count(*) INTO most FROM (
            SELECT 1 FROM job WHERE queue = r.queue AND state = 1 AND eligible = 1 LIMIT most
        ) s;
        CONTINUE WHEN most <= 0;
        WITH chosen AS (
            SELECT p.name, p.channel FROM peer p
            WHERE p.namespace = p_namespace AND r.queue = ANY (p.queues)
                AND (p.woken = 0 OR p.woken <= p_now - 1)
                AND (p.name <> p_claimant OR NOT r.queue = ANY (p_claimed))
                AND alive_v1(p.pid, p.started)
            ORDER BY p.woken = 0 DESC, p.since DESC LIMIT most FOR UPDATE SKIP LOCKED
        ), told AS (
            UPDATE peer SET woken = p_now FROM chosen
            WHERE peer.namespace = p_namespace AND peer.name = chosen.name
        )
        SELECT array_agg(ROW (channel, name, 0, r.queue, NULL)::letter_v1) INTO woken_now FROM chosen;
        letters := letters || woken_now;
    END LOOP;
    RETURN letters;
END $$;

-- Whether a process of this server still listens. When it started is hidden from other users.
CREATE FUNCTION alive_v1(p_pid integer, p_started timestamptz) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (
        SELECT EXISTS (SELECT 1 FROM pg_stat_get_activity(p_pid) a
            WHERE a.backend_start IS NULL OR a.backend_start = p_started)
    );
END $$;

-- Forget peers and listeners that are gone: exactly the rows that were found so, by a list of
-- processes that is newer than they are, for any of them may come back meanwhile.
CREATE FUNCTION forget_dead_v1(p_namespace integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    dead record;
BEGIN
    PERFORM pg_stat_clear_snapshot();
    FOR dead IN SELECT p.name, p.channel, p.pid, p.started FROM peer p
        WHERE p.namespace = p_namespace AND NOT alive_v1(p.pid, p.started) ORDER BY p.name
    LOOP
        DELETE FROM peer p WHERE p.namespace = p_namespace AND p.name = dead.name
            AND p.channel = dead.channel AND p.pid = dead.pid AND p.started = dead.started;
    END LOOP;
    FOR dead IN SELECT l.channel, l.pid, l.started FROM listener l
        WHERE l.namespace = p_namespace AND NOT alive_v1(l.pid, l.started) ORDER BY l.channel
    LOOP
        DELETE FROM listener l WHERE l.namespace = p_namespace AND l.channel = dead.channel
            AND l.pid = dead.pid AND l.started = dead.started;
    END LOOP;
END $$;

-- Make a peer one of those that new work of these queues wakes, beside those that it waits for
-- already; with work, only if no other idles.
CREATE FUNCTION idle_v1(p_namespace integer, p_now double precision, p_peer bytea,
    p_queues integer[], p_busy boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE peer SET
        queues = ARRAY(
            SELECT unnest(peer.queues) WHERE peer.woken = 0 UNION
            SELECT unnest(p_queues) WHERE NOT p_busy
        ),
        since = CASE WHEN p_busy THEN 0 ELSE p_now END,
        woken = 0
    WHERE peer.namespace = p_namespace AND peer.name = p_peer AND (peer.woken <> 0
        OR CASE WHEN p_busy THEN peer.since <> 0 AND peer.queues <> '{}'
            ELSE peer.since = 0 OR NOT peer.queues @> p_queues END);
END $$;

-- End jobs: retention, history, counters, lane, unique key and submitter are seen to.
CREATE FUNCTION finish_v1(p_namespace integer, p_now double precision, p_seqs bigint[],
    p_states smallint[], p_codes bytea[], p_results bytea[], p_errors bytea[], p_progress bytea[],
    p_backs smallint[], p_crashes bigint[], p_ended double precision[], p_totals smallint[],
    p_ran boolean[]) RETURNS effect_v1 LANGUAGE plpgsql AS $$
DECLARE
    moves move_v1[];
    effect effect_v1;
BEGIN
    IF coalesce(array_length(p_seqs, 1), 0) = 0 THEN
        RETURN effect;
    END IF;
    WITH s AS MATERIALIZED (
        SELECT * FROM unnest(p_seqs, p_states, p_codes, p_results, p_errors, p_progress, p_backs,
            p_crashes, p_ended, p_totals, p_ran) AS s (seq, state, code, result, error, progress,
            back, crashes, ended, total, ran)
    ), gone AS (
        DELETE FROM job USING s WHERE job.seq = s.seq RETURNING job.*, s.state AS to_state,
            s.code AS to_code, s.result AS to_result, s.error, s.progress AS to_progress, s.back,
            s.crashes AS to_crashes, coalesce(s.ended, p_now) AS ended, s.total, s.ran,
            p_now + greatest(job.id_ttl, CASE WHEN s.state IN (3, 5) THEN job.result_ttl
                ELSE job.failure_ttl END) AS until,
            CASE WHEN s.state IN (3, 5) THEN job.result_ttl ELSE job.failure_ttl END IS NULL
                AS for_ever
    ), stored AS (
        INSERT INTO done (seq, place, namespace, queue, task, state, eligible, cancel, priority, ready_at,
            token, attempt, max_attempts, crashes, generation, unknown, unknown_since, number,
            entered, deadline_at, submitted_at, started_at, finished_at, expires_at, tidy_at,
            result_ttl, failure_ttl, id_ttl, unique_ttl, unique_mode, id, submission, lane, batch,
            unique_key, origin, worker, peer, code, progress, history, body, result)
        SELECT seq, place, namespace, queue, task, to_state, 0, cancel, priority, ready_at,
            token, attempt - back, max_attempts, to_crashes, generation, unknown, unknown_since,
            number, entered, deadline_at, submitted_at, started_at, ended,
            CASE WHEN NOT for_ever THEN until END,
            least(CASE WHEN NOT for_ever THEN greatest(until, p_now + 10) END,
                CASE WHEN to_state = 3 THEN p_now + CASE WHEN result_ttl IS NOT NULL
                    THEN greatest(result_ttl, 10) END END),
            result_ttl, failure_ttl, id_ttl, unique_ttl, unique_mode, id, submission, lane, batch,
            unique_key, origin, worker, peer, to_code, coalesce(to_progress, progress),
            history || failure_v1(error, attempt, worker, started_at, p_now),
            body, to_result
        FROM gone
    ), freed AS (
        DELETE FROM unique_key USING gone
        WHERE unique_key.queue = gone.queue AND unique_key.key = gone.unique_key
            AND unique_key.seq = gone.seq AND gone.unique_mode <> 2
    )
    SELECT array_agg(ROW (queue, task, lane, batch, state, to_state, total,
            CASE WHEN ran THEN p_now - started_at END, false)::move_v1),
        array_agg(ROW (NULL, origin, 1, queue, id)::letter_v1) FILTER (WHERE origin <> '')
    INTO moves, effect.letters FROM gone;
    effect.ready := book_v1(p_namespace, p_now, NULL, moves);
    RETURN effect;
END $$;

-- An entry of a history: what the storage knows of the attempt, before what its holder says.
CREATE FUNCTION failure_v1(p_error bytea, p_attempt bigint, p_worker bytea,
    p_started double precision, p_now double precision) RETURNS bytea[] LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_error IS NOT NULL THEN ARRAY[
        int8send(p_attempt) || float8send(coalesce(p_started, p_now)) || float8send(p_now)
            || int4send(length(p_worker)) || p_worker || p_error
    ] END
$$;

-- Put jobs back into line.
CREATE FUNCTION requeue_v1(p_namespace integer, p_now double precision, p_seqs bigint[],
    p_states smallint[], p_ready double precision[], p_errors bytea[], p_progress bytea[],
    p_backs smallint[], p_crashes bigint[], p_unknown bigint[], p_since double precision[],
    p_totals smallint[], p_ran boolean[]) RETURNS effect_v1 LANGUAGE plpgsql AS $$
DECLARE
    moves move_v1[];
    effect effect_v1;
BEGIN
    IF coalesce(array_length(p_seqs, 1), 0) = 0 THEN
        RETURN effect;
    END IF;
    WITH s AS MATERIALIZED (
        SELECT * FROM unnest(p_seqs, p_states, p_ready, p_errors, p_progress, p_backs, p_crashes,
            p_unknown, p_since, p_totals, p_ran) AS s (seq, state, ready_at, error, progress,
            back, crashes, unknown, since, total, ran)
    ), moved AS (
        UPDATE job SET state = s.state,
            eligible = (s.state = 1 AND job.lane IS NULL)::integer,
            ready_at = coalesce(s.ready_at, job.ready_at), attempt = job.attempt - s.back,
            crashes = s.crashes, unknown = s.unknown, unknown_since = s.since,
            progress = coalesce(s.progress, job.progress), lease_until = NULL,
            history = job.history
                || failure_v1(s.error, job.attempt, job.worker, job.started_at, p_now)
        FROM s WHERE job.seq = s.seq
        RETURNING job.queue, job.task, job.lane, job.batch, job.state, s.total,
            CASE WHEN s.ran THEN p_now - job.started_at END AS ran
    )
    SELECT array_agg(ROW (queue, task, lane, batch, 2, state, total, ran, false)::move_v1)
    INTO moves FROM moved;
    effect.ready := book_v1(p_namespace, p_now, NULL, moves);
    RETURN effect;
END $$;

-- Queue delayed jobs whose time has come.
CREATE FUNCTION promote_v1(p_namespace integer, p_now double precision, p_seqs bigint[])
RETURNS ready_v1[] LANGUAGE plpgsql AS $$
DECLARE
    moves move_v1[];
BEGIN
    WITH moved AS (
        UPDATE job SET state = 1, eligible = (lane IS NULL)::integer WHERE seq = ANY (p_seqs)
        RETURNING queue, task, lane, batch
    )
    SELECT array_agg(ROW (queue, task, lane, batch, 0, 1, NULL, NULL, false)::move_v1)
    INTO moves FROM moved;
    RETURN book_v1(p_namespace, p_now, NULL, moves);
END $$;

-- Take ended jobs out of the store. A throttle key outlives its job, and answers with the state
-- that the job had. Batches go on counting them.
CREATE FUNCTION remove_v1(p_namespace integer, p_now double precision, p_seqs bigint[],
    p_tell boolean) RETURNS letter_v1[] LANGUAGE plpgsql AS $$
DECLARE
    moves move_v1[];
    letters letter_v1[];
BEGIN
    WITH gone AS (
        DELETE FROM done WHERE seq = ANY (p_seqs)
        RETURNING seq, queue, task, state, unique_key, unique_mode, origin, id
    ), kept AS (
        UPDATE unique_key SET state = gone.state FROM gone
        WHERE unique_key.queue = gone.queue AND unique_key.key = gone.unique_key
            AND unique_key.seq = gone.seq AND gone.unique_mode = 2
    )
    SELECT array_agg(ROW (queue, task, NULL, NULL, state, NULL, 18, NULL, false)::move_v1),
        array_agg(ROW (NULL, origin, 1, queue, id)::letter_v1) FILTER (WHERE origin <> '')
    INTO moves, letters FROM gone;
    PERFORM book_v1(p_namespace, p_now, NULL, moves);
    RETURN CASE WHEN p_tell THEN letters END;
END $$;

-- What a call has to tell, addressed, as JSON; NULL if nothing. "listened" goes with every answer.
CREATE FUNCTION post_v1(p_namespace integer, p_letters letter_v1[]) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
    RETURN (
        SELECT json_agg(json_build_array(coalesce(l.channel, p.channel), encode(l.peer, 'hex'),
            l.kind, l.queue, encode(l.id, 'hex')))::text
        FROM unnest(p_letters) AS l
            LEFT JOIN peer p ON p.namespace = p_namespace AND p.name = l.peer
        WHERE coalesce(l.channel, p.channel) IS NOT NULL
    );
END $$;

CREATE FUNCTION listened_v1(p_namespace integer) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN (SELECT EXISTS (SELECT 1 FROM listener WHERE namespace = p_namespace));
END $$;

-- End a call: choose whom it wakes, keep the time, return what is to be told.
CREATE FUNCTION end_v1(p_namespace integer, p_now double precision, p_queues integer[],
    p_effect effect_v1, p_claimant bytea, p_claimed integer[]) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    letters letter_v1[];
BEGIN
    PERFORM leave_v1(p_now, p_queues);
    letters := (p_effect).letters
        || wake_v1(p_namespace, p_now, (p_effect).ready, p_claimant, p_claimed);
    IF letters IS NULL THEN
        RETURN NULL;
    END IF;
    RETURN post_v1(p_namespace, letters);
END $$;
