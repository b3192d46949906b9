-- "at" is when it was submitted, where that is not now; "holder" the job that holds its unique key,
-- where it is stored without it.
CREATE TYPE new_job_v1 AS (
    queue integer, task integer, id bytea, submission bytea, body bytea, priority bigint,
    delay double precision, run_at double precision, deadline_in double precision,
    deadline_at double precision, max_attempts bigint, lane bytea, batch bytea,
    unique_mode smallint, unique_ttl double precision, unique_key bytea,
    result_ttl double precision, failure_ttl double precision, id_ttl double precision,
    not_after double precision, origin bytea, at double precision, holder bytea
);

-- Store new jobs that nothing stands against, in order.
CREATE FUNCTION insert_v1(p_namespace integer, p_now double precision, p_jobs new_job_v1[],
    p_generations bigint[], OUT seqs bigint[], OUT states smallint[], OUT ready ready_v1[])
LANGUAGE plpgsql AS $$
DECLARE
    moves move_v1[];
BEGIN
    SELECT array_agg(nextval('job_sequence')) INTO seqs
    FROM generate_series(1, array_length(p_jobs, 1));
    WITH s AS MATERIALIZED (
        SELECT j.*, coalesce(p_generations[j.n], 0) AS generation,
            greatest(base, coalesce(j.run_at, base + j.delay)) AS ready_at, base
        FROM ROWS FROM (unnest(p_jobs), unnest(seqs)) WITH ORDINALITY AS j (queue, task, id,
            submission, body, priority, delay, run_at, deadline_in, deadline_at, max_attempts,
            lane, batch, unique_mode, unique_ttl, unique_key, result_ttl, failure_ttl, id_ttl,
            not_after, origin, at, holder, seq, n), coalesce(j.at, p_now) AS base
    ), stored AS (
        INSERT INTO job (seq, place, namespace, queue, task, state, eligible, priority, ready_at,
            max_attempts, generation, deadline_at, submitted_at, result_ttl, failure_ttl, id_ttl,
            unique_ttl, unique_mode, id, submission, lane, batch, unique_key, origin, body)
        SELECT seq, seq, p_namespace, queue, task, (ready_at <= p_now)::integer,
            (ready_at <= p_now AND lane IS NULL)::integer, priority, ready_at, max_attempts,
            generation, least(base + deadline_in, deadline_at), base, result_ttl, failure_ttl,
            id_ttl, unique_ttl, unique_mode, id, submission, lane, batch, unique_key, origin, body
        FROM s ORDER BY n
    ), held AS (
        INSERT INTO unique_key (namespace, queue, key, seq, place, id, generation, state, until)
        SELECT p_namespace, queue, unique_key, seq, seq, id, generation,
            (ready_at <= p_now)::integer, CASE WHEN unique_mode = 2 THEN base + unique_ttl END
        FROM s WHERE unique_key IS NOT NULL AND holder IS NULL
        ON CONFLICT (queue, key) DO UPDATE SET seq = excluded.seq, place = excluded.place,
            id = excluded.id, generation = excluded.generation, state = excluded.state, until = excluded.until
    )
    SELECT array_agg(ROW (queue, task, lane, batch, NULL, (ready_at <= p_now)::integer, 7, NULL,
            false)::move_v1 ORDER BY n),
        array_agg((ready_at <= p_now)::integer ORDER BY n)
    INTO moves, states FROM s;
    ready := book_v1(p_namespace, p_now, seqs[1], moves);
END $$;

-- The state that readers see: a deadline holds before a sweep stores it.
CREATE FUNCTION shown_v1(p_state smallint, p_deadline double precision, p_now double precision)
RETURNS smallint LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_state < 2 AND p_deadline <= p_now THEN 4::smallint ELSE p_state END
$$;

-- The job that has an id, also one that has expired and is not yet removed.
CREATE FUNCTION held_v1(p_queue integer, p_id bytea, p_now double precision)
RETURNS TABLE (seq bigint, place bigint, state smallint, generation bigint, submission bytea,
    deadline_at double precision, id bytea, expired boolean) LANGUAGE sql STABLE AS $$
    SELECT a.seq, a.place, a.state, a.generation, a.submission, a.deadline_at, a.id, false
    FROM job a WHERE a.queue = p_queue AND a.id = p_id
    UNION ALL
    SELECT d.seq, d.place, d.state, d.generation, d.submission, d.deadline_at, d.id,
        coalesce(d.expires_at <= p_now, false)
    FROM done d WHERE d.queue = p_queue AND d.id = p_id
$$;

-- The job that holds a unique key.
CREATE FUNCTION holder_v1(p_queue integer, p_key bytea, p_now double precision)
RETURNS TABLE (seq bigint, place bigint, state smallint, generation bigint, submission bytea,
    deadline_at double precision, id bytea, expired boolean) LANGUAGE sql STABLE AS $$
    SELECT u.seq, coalesce(j.place, u.place), coalesce(j.state, u.state),
        coalesce(j.generation, u.generation), NULL::bytea, j.deadline_at, u.id, false
    FROM unique_key u LEFT JOIN LATERAL (
        SELECT a.place, a.state, a.generation, a.deadline_at FROM job a
        WHERE a.queue = u.queue AND a.id = u.id
        UNION ALL
        SELECT d.place, d.state, d.generation, d.deadline_at FROM done d
        WHERE d.queue = u.queue AND d.id = u.id
    ) j ON true
    WHERE u.queue = p_queue AND u.key = p_key AND (u.until IS NULL OR u.until > p_now)
$$;

-- Store jobs and answer for each: 0 accepted, 1 duplicate, 2 full, 3 draining, 4 refused, 5 late.
-- Without an answer more is to be moved in first, by calls like this one.
-- p_plain says that no two jobs of the call share an id, and none has a unique key or a not_after.
CREATE FUNCTION submit_v1(p_namespace integer, p_clock double precision, p_wait text,
    p_plain boolean, p_queues integer[], p_tasks integer[], p_ids bytea[], p_submissions bytea[],
    p_bodies bytea[], p_priorities bigint[], p_delays double precision[],
    p_run_at double precision[], p_deadline_in double precision[],
    p_deadline_at double precision[], p_max_attempts bigint[], p_lanes bytea[], p_batches bytea[],
    p_modes smallint[], p_unique_ttls double precision[], p_keys bytea[],
    p_result_ttls double precision[], p_failure_ttls double precision[],
    p_id_ttls double precision[], p_not_after double precision[], p_origins bytea[],
    OUT now double precision, OUT listened boolean, OUT letters text, OUT statuses smallint[],
    OUT ids bytea[], OUT states smallint[], OUT seqs bigint[], OUT generations bigint[])
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off SET enable_sort = off
SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
SET jit = off AS $$
DECLARE
    locked integer[] := ARRAY(SELECT DISTINCT q FROM unnest(p_queues) AS q ORDER BY q);
    jobs new_job_v1[];
    effect effect_v1;
    inserted record;
    judged record;
    moved record;
BEGIN
    now := enter_v1(p_namespace, p_clock, p_wait, locked);
    IF EXISTS (SELECT unnest(p_tasks) EXCEPT SELECT id FROM task WHERE id = ANY (p_tasks)) THEN
        RAISE EXCEPTION 'the numbers of names are not those of this store' USING ERRCODE = 'PQ002';
    END IF;
    listened := listened_v1(p_namespace);
    IF EXISTS (SELECT 1 FROM queue q JOIN inbox i ON i.namespace = p_namespace AND i.queue = q.name
            WHERE q.id = ANY (locked)) THEN
        SELECT * INTO moved FROM move_in_v1(p_namespace, now, locked);
        effect := moved.effect;
        IF moved.more THEN
            letters := end_v1(p_namespace, now, '{}', effect, '', '{}');
            RETURN;
        END IF;
    END IF;
    SELECT array_agg(ROW (s.*, NULL, NULL)::new_job_v1) INTO jobs
    FROM unnest(p_queues, p_tasks, p_ids, p_submissions, p_bodies, p_priorities, p_delays,
        p_run_at, p_deadline_in, p_deadline_at, p_max_attempts, p_lanes, p_batches, p_modes,
        p_unique_ttls, p_keys, p_result_ttls, p_failure_ttls, p_id_ttls, p_not_after, p_origins)
        AS s;
    UPDATE queue SET said = true WHERE queue.id = ANY (locked) AND NOT queue.said;
    IF p_plain THEN
        PERFORM 1 FROM queue WHERE queue.id = ANY (locked)
            AND (queue.draining OR queue.max_length IS NOT NULL)
        UNION ALL
        SELECT 1 FROM unnest(p_queues, p_ids) AS s (queue, id) CROSS JOIN LATERAL (
            SELECT 1 FROM job WHERE job.queue = s.queue AND job.id = s.id
            UNION ALL
            SELECT 1 FROM done WHERE done.queue = s.queue AND done.id = s.id
        ) j;
    END IF;
    IF p_plain AND NOT FOUND THEN
        SELECT * INTO inserted FROM insert_v1(p_namespace, now, jobs, NULL);
        seqs := inserted.seqs;
        states := inserted.states;
        effect.ready := effect.ready || inserted.ready;
    ELSE
        SELECT * INTO judged FROM judge_v1(p_namespace, now, jobs, false);
        statuses := judged.statuses;
        ids := judged.ids;
        states := judged.states;
        seqs := judged.seqs;
        generations := judged.generations;
        effect.ready := effect.ready || (judged.effect).ready;
        effect.letters := effect.letters || (judged.effect).letters;
    END IF;
    letters := end_v1(p_namespace, now, locked, effect, '', '{}');
END $$;

-- Judge jobs one after the other, each as those before it left the store. Where a queue is full or
-- is being drained, all of it is taken back. p_moved says that they have been committed: then there
-- is room, and what finds its unique key held ends as skipped.
CREATE FUNCTION judge_v1(p_namespace integer, p_now double precision, p_jobs new_job_v1[],
    p_moved boolean, OUT statuses smallint[], OUT ids bytea[], OUT states smallint[], OUT seqs bigint[],
    OUT generations bigint[], OUT effect effect_v1) LANGUAGE plpgsql AS $$
DECLARE
    job new_job_v1;
    held record;
    stored record;
    one effect_v1;
    q queue;
    first bigint;
    full_queues integer[] := '{}';
    draining boolean := false;
    expired boolean;
    former bigint;
    status integer;
    n integer := 0;
BEGIN
    first := nextval('job_sequence');
    BEGIN
        FOREACH job IN ARRAY p_jobs LOOP
            n := n + 1;
            status := NULL;
            SELECT * INTO held FROM held_v1(job.queue, job.id, p_now);
            generations[n] := 0;
            -- What has expired makes room for what is stored; until then its waiters may look at it.
            former := held.seq;
            expired := coalesce(held.expired, false);
            IF held.seq IS NOT NULL AND NOT expired THEN
                IF held.submission = job.submission THEN
                    status := (held.state = 5)::integer;
                ELSIF held.state <> 5 THEN
                    status := 1;
                END IF;
                generations[n] := held.generation + 1;
            END IF;
            IF status IS NULL AND job.unique_key IS NOT NULL THEN
                SELECT * INTO stored FROM holder_v1(job.queue, job.unique_key, p_now);
                IF FOUND AND p_moved THEN
                    job.holder := stored.id;
                ELSIF FOUND THEN
                    held := stored;
                    status := 1;
                END IF;
            END IF;
            IF status IS NOT NULL THEN
                statuses[n] := status;
                ids[n] := held.id;
                states[n] := shown_v1(held.state, held.deadline_at, p_now);
                seqs[n] := held.place;
                generations[n] := held.generation;
                CONTINUE;
            END IF;
            ids[n] := job.id;
            IF job.not_after < p_now THEN
                statuses[n] := 5;
                states[n] := 1;
                seqs[n] := 0;
                generations[n] := 0;
                CONTINUE;
            END IF;
            SELECT * INTO q FROM queue WHERE queue.id = job.queue;
            IF NOT p_moved AND waiting_v1(job.queue) >= q.max_length THEN
                full_queues := full_queues || job.queue;
            END IF;
            draining := draining OR q.draining AND NOT p_moved;
            IF former IS NOT NULL THEN
                effect.letters := effect.letters
                    || remove_v1(p_namespace, p_now, ARRAY[former], expired);
            END IF;
            SELECT * INTO stored
            FROM insert_v1(p_namespace, p_now, ARRAY[job], ARRAY[generations[n]]);
            statuses[n] := 0;
            seqs[n] := stored.seqs[1];
            states[n] := stored.states[1];
            IF job.holder IS NULL THEN
                effect.ready := effect.ready || stored.ready;
            ELSE
                one := skip_v1(p_namespace, p_now, stored.seqs, job.holder);
                effect.ready := effect.ready || one.ready;
                effect.letters := effect.letters || one.letters;
            END IF;
        END LOOP;
        IF draining OR full_queues <> '{}' THEN
            RAISE SQLSTATE 'PQ001';
        END IF;
    EXCEPTION WHEN SQLSTATE 'PQ001' THEN
        effect := NULL;
        -- An answer that names a job of this very call stands for nothing that is stored.
        FOR n IN 1 .. array_length(p_jobs, 1) LOOP
            IF seqs[n] > first THEN
                statuses[n] := (
                    SELECT CASE WHEN queue.draining THEN 3
                        WHEN queue.id = ANY (full_queues) THEN 2 ELSE 4 END
                    FROM queue WHERE queue.id = p_jobs[n].queue
                );
                ids[n] := p_jobs[n].id;
                states[n] := 1;
                seqs[n] := 0;
                generations[n] := 0;
            END IF;
        END LOOP;
    END;
END $$;

-- In how many seconds the next job of a queue falls due.
CREATE FUNCTION due_in_v1(p_queue integer, p_now double precision) RETURNS double precision
LANGUAGE plpgsql AS $$
BEGIN
    RETURN (
        SELECT greatest(0, ready_at - p_now) FROM job WHERE queue = p_queue AND state = 0
        ORDER BY ready_at LIMIT 1
    );
END $$;

-- Queue what has fallen due, and tell in how many seconds the next job does.
CREATE FUNCTION promote_due_v1(p_namespace integer, p_now double precision, p_queue integer,
    p_limit bigint, OUT due double precision, OUT ready ready_v1[]) LANGUAGE plpgsql AS $$
BEGIN
    due := due_in_v1(p_queue, p_now);
    IF due = 0 THEN
        ready := promote_v1(p_namespace, p_now, ARRAY(
            SELECT seq FROM job WHERE queue = p_queue AND state = 0 AND ready_at <= p_now
            ORDER BY ready_at, place LIMIT 2 * p_limit + 100
        ));
        due := due_in_v1(p_queue, p_now);
    END IF;
END $$;

-- Return the first jobs of the ready order. Those past their deadline leave it, and the next sweep
-- ends them; "whole" is false when they cut the search short. What jobs carry is bounded, since an
-- answer is: "cut" says that more would have come.
CREATE FUNCTION first_v1(p_now double precision, p_queue integer, p_most bigint, p_overdue bigint,
    OUT seqs bigint[], OUT whole boolean, OUT cut boolean) LANGUAGE plpgsql AS $$
DECLARE
    overdue bigint[];
    bytes bigint;
    lanes bytea[];
    over_left bigint := p_overdue;
BEGIN
    whole := true;
    cut := false;
    LOOP
        SELECT array_agg(s.seq), array_agg(s.seq) FILTER (WHERE s.deadline_at <= p_now),
            sum(s.bytes)
        INTO seqs, overdue, bytes FROM (
            SELECT seq, deadline_at, octet_length(body) AS bytes FROM job
            WHERE queue = p_queue AND state = 1 AND eligible = 1
            ORDER BY priority DESC, ready_at, place LIMIT p_most
        ) s;
        IF overdue IS NULL THEN
            IF bytes > 67108864 THEN
                SELECT array_agg(s.seq ORDER BY s.n) INTO seqs FROM (
                    SELECT job.seq, a.n, a.n = 1 OR sum(octet_length(job.body)) OVER (ORDER BY a.n)
                        <= 67108864 AS fits
                    FROM unnest(seqs) WITH ORDINALITY AS a (seq, n) JOIN job ON job.seq = a.seq
                ) s WHERE s.fits;
                cut := true;
            END IF;
            RETURN;
        END IF;
        WITH aside AS (
            UPDATE job SET eligible = 2 WHERE seq = ANY (overdue) RETURNING lane
        )
        SELECT array_agg(lane) FILTER (WHERE lane IS NOT NULL) INTO lanes FROM aside;
        IF lanes IS NOT NULL THEN
            PERFORM repair_v1(array_fill(p_queue, ARRAY[array_length(lanes, 1)]), lanes, 128);
        END IF;
        over_left := over_left - array_length(overdue, 1);
        IF over_left <= 0 THEN
            seqs := NULL;
            whole := false;
            RETURN;
        END IF;
    END LOOP;
END $$;

-- Lease jobs in the order given.
CREATE FUNCTION grant_v1(p_namespace integer, p_now double precision, p_queue integer,
    p_seqs bigint[], p_worker bytea, p_peer bytea, p_number bigint, p_lease double precision)
RETURNS ready_v1[] LANGUAGE plpgsql AS $$
DECLARE
    moves move_v1[];
    first bigint;
BEGIN
    IF coalesce(array_length(p_seqs, 1), 0) = 0 THEN
        RETURN NULL;
    END IF;
    UPDATE queue SET now = greatest(now, p_now),
        token = greatest(token + 1, (p_now * 1000000)::bigint) + array_length(p_seqs, 1) - 1
    WHERE id = p_queue RETURNING token - array_length(p_seqs, 1) + 1 INTO first;
    WITH leased AS (
        UPDATE job SET state = 2, token = first + s.n - 1, attempt = attempt + 1,
            started_at = p_now, lease_until = p_now + p_lease, worker = p_worker, peer = p_peer,
            number = p_number
        FROM unnest(p_seqs) WITH ORDINALITY AS s (seq, n) WHERE job.seq = s.seq
        RETURNING job.seq, job.queue, job.task, job.lane, job.batch, job.unique_key,
            job.unique_mode
    ), freed AS (
        DELETE FROM unique_key USING leased
        WHERE leased.unique_mode = 0 AND unique_key.queue = leased.queue
            AND unique_key.key = leased.unique_key AND unique_key.seq = leased.seq
    )
    SELECT array_agg(ROW (queue, task, lane, batch, 1, 2, 8, NULL, false)::move_v1)
    INTO moves FROM leased;
    RETURN book_v1(p_namespace, p_now, NULL, moves);
END $$;

-- Queue what has fallen due in a limited queue and look at its first jobs, at most p_most, with the
-- states of its limiters: of its own, and, unless p_lanes is NULL, of those lanes and of the jobs'.
CREATE FUNCTION survey_v1(p_namespace integer, p_now double precision, p_queue integer,
    p_left bigint, p_most bigint, p_lanes bytea[], OUT due double precision, OUT effect text,
    OUT room bigint, OUT whole boolean, OUT cut boolean, OUT seqs bigint[], OUT lanes bytea[],
    OUT b_lanes bytea[], OUT b_versions bigint[], OUT b_states bytea[])
LANGUAGE plpgsql AS $$
DECLARE
    step record;
BEGIN
    SELECT * INTO step FROM promote_due_v1(p_namespace, p_now, p_queue, p_left);
    due := step.due;
    effect := ROW (step.ready, NULL)::effect_v1::text;
    room := room_v1(p_queue);
    whole := true;
    cut := false;
    IF room <= 0 OR p_most <= 0 THEN
        RETURN;
    END IF;
    SELECT * INTO step FROM first_v1(p_now, p_queue, p_most, p_most);
    whole := step.whole;
    cut := step.cut;
    SELECT array_agg(job.seq ORDER BY s.n), array_agg(job.lane ORDER BY s.n) INTO seqs, lanes
    FROM unnest(step.seqs) WITH ORDINALITY AS s (seq, n) JOIN job ON job.seq = s.seq;
    SELECT array_agg(CASE WHEN b.kind = 1 THEN b.lane END), array_agg(b.version),
        array_agg(b.state)
    INTO b_lanes, b_versions, b_states
    FROM (
        SELECT 0::smallint AS kind, ''::bytea AS lane
        UNION SELECT 1, unnest(CASE WHEN p_lanes IS NOT NULL THEN p_lanes || lanes END)
    ) s JOIN budget b ON b.queue = p_queue AND b.kind = s.kind AND b.lane = s.lane
    WHERE b.expires > p_now;
END $$;

-- Lease jobs of a limited queue in the order given, with the states of its limiters that these
-- starts leave; answered are the versions of these.
CREATE FUNCTION spend_v1(p_namespace integer, p_now double precision, p_queue integer,
    p_seqs bigint[], p_worker bytea, p_peer bytea, p_number bigint, p_lease double precision,
    p_kinds smallint[], p_lanes bytea[], p_states bytea[], p_expires double precision[],
    OUT effect text, OUT versions bigint[]) LANGUAGE plpgsql AS $$
BEGIN
    versions := ARRAY(
        SELECT nextval('version_sequence') FROM generate_series(1, cardinality(p_kinds))
    );
    INSERT INTO budget (namespace, queue, kind, lane, version, state, expires)
    SELECT p_namespace, p_queue, s.kind, s.lane, s.version, s.state, s.expires
    FROM unnest(p_kinds, p_lanes, p_states, p_expires, versions)
        AS s (kind, lane, state, expires, version)
    ON CONFLICT (queue, kind, lane) DO UPDATE SET version = excluded.version,
        state = excluded.state, expires = excluded.expires;
    effect := ROW (grant_v1(p_namespace, p_now, p_queue, p_seqs, p_worker, p_peer, p_number,
        p_lease), NULL)::effect_v1::text;
END $$;

-- Grant the first jobs of a queue that no limiter bounds.
CREATE FUNCTION take_v1(p_namespace integer, p_now double precision, p_queue integer,
    p_left bigint, p_limit bigint, p_worker bytea, p_peer bytea, p_number bigint,
    p_lease double precision, OUT taken bigint, OUT whole boolean, OUT ready ready_v1[])
LANGUAGE plpgsql AS $$
DECLARE
    most bigint := least(p_left, room_v1(p_queue));
    wide boolean := (SELECT lane_max_running > 128 FROM queue WHERE id = p_queue);
    part bigint;
    got bigint;
    heads record;
BEGIN
    taken := 0;
    whole := true;
    WHILE most > 0 LOOP
        -- Beyond its heads a lane may have jobs that come before those of others.
        part := CASE WHEN wide THEN least(most, 128) ELSE most END;
        SELECT * INTO heads FROM first_v1(p_now, p_queue, part, 2 * p_limit + 100);
        IF NOT heads.whole THEN
            whole := false;
            RETURN;
        END IF;
        got := coalesce(array_length(heads.seqs, 1), 0);
        ready := ready || grant_v1(p_namespace, p_now, p_queue, heads.seqs, p_worker, p_peer,
            p_number, p_lease);
        taken := taken + got;
        most := most - part;
        whole := NOT heads.cut;
        EXIT WHEN got < part;
    END LOOP;
END $$;

-- The leases that a claim was granted and that still stand, queue by queue.
CREATE FUNCTION leases_v1(p_namespace integer, p_now double precision, p_queues integer[],
    p_worker bytea, p_number bigint, OUT l_queue integer[], OUT l_task integer[],
    OUT l_id bytea[], OUT l_body bytea[], OUT l_lane bytea[], OUT l_batch bytea[],
    OUT l_token bigint[], OUT l_attempt bigint[], OUT l_max_attempts bigint[], OUT l_seq bigint[],
    OUT l_generation bigint[], OUT l_priority bigint[], OUT l_crashes bigint[],
    OUT l_unknown bigint[], OUT l_submitted_at double precision[],
    OUT l_started_at double precision[], OUT l_deadline_in double precision[],
    OUT l_unknown_for double precision[]) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    SELECT array_agg(queue), array_agg(task), array_agg(id), array_agg(body), array_agg(lane),
        array_agg(batch), array_agg(token), array_agg(attempt), array_agg(max_attempts),
        array_agg(place), array_agg(generation), array_agg(priority), array_agg(crashes),
        array_agg(unknown), array_agg(submitted_at), array_agg(started_at),
        array_agg(deadline_at - p_now), array_agg(coalesce(p_now - unknown_since, 0))
    INTO l_queue, l_task, l_id, l_body, l_lane, l_batch, l_token, l_attempt, l_max_attempts,
        l_seq, l_generation, l_priority, l_crashes, l_unknown, l_submitted_at, l_started_at,
        l_deadline_in, l_unknown_for
    FROM (
        SELECT * FROM job WHERE namespace = p_namespace AND worker = p_worker AND state = 2
            AND number = p_number
        ORDER BY coalesce(array_position(p_queues, queue), 1000000), token
    ) s;
END $$;

-- Whether a claim was granted leases, as far as that is remembered: while one of them stands anyway.
CREATE FUNCTION repeated_v1(p_namespace integer, p_worker bytea, p_number bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    RETURN (
        SELECT EXISTS (SELECT 1 FROM claimed WHERE namespace = p_namespace AND worker = p_worker
                AND number = p_number)
            OR EXISTS (SELECT 1 FROM job WHERE namespace = p_namespace AND worker = p_worker
                AND state = 2 AND number = p_number)
    );
END $$;

-- Serve a claim of queues that no limiter bounds, whose rows are locked. Where one is limited
-- after all, "limited" is true and nothing was done.
CREATE FUNCTION serve_v1(p_namespace integer, p_now double precision, p_queues integer[],
    p_limit bigint, p_worker bytea, p_peer bytea, p_number bigint, p_lease double precision,
    OUT limited boolean, OUT granted bigint, OUT next_in double precision, OUT ready ready_v1[])
LANGUAGE plpgsql AS $$
DECLARE
    queue_id integer;
    q queue;
    step record;
BEGIN
    granted := 0;
    limited := EXISTS (
        SELECT 1 FROM queue WHERE id = ANY (p_queues) AND (limits <> '' OR lane_limits <> '')
    );
    IF limited THEN
        RETURN;
    END IF;
    IF p_limit > 0 AND repeated_v1(p_namespace, p_worker, p_number) THEN
        SELECT min(due_in_v1(id, p_now)) INTO next_in FROM queue
        WHERE id = ANY (p_queues) AND NOT paused;
        RETURN;
    END IF;
    FOREACH queue_id IN ARRAY p_queues LOOP
        SELECT * INTO q FROM queue WHERE id = queue_id;
        CONTINUE WHEN q.paused;
        IF granted >= p_limit THEN
            next_in := least(next_in, due_in_v1(queue_id, p_now));
            CONTINUE;
        END IF;
        SELECT * INTO step FROM promote_due_v1(p_namespace, p_now, queue_id, p_limit - granted);
        next_in := least(next_in, step.due);
        ready := ready || step.ready;
        SELECT * INTO step FROM take_v1(p_namespace, p_now, queue_id, p_limit - granted, p_limit,
            p_worker, p_peer, p_number, p_lease);
        granted := granted + step.taken;
        -- What was taken wakes nobody.
        ready := ready || step.ready || ROW (queue_id, -step.taken, false)::ready_v1
            || ROW (queue_id, -step.taken, true)::ready_v1;
        IF NOT step.whole THEN
            next_in := 0;
        END IF;
    END LOOP;
    PERFORM served_v1(p_namespace, p_now, p_queues, p_limit, granted, p_worker, p_peer, p_number,
        p_lease);
END $$;

-- Remember a claim that granted leases, and whether its peer is idle now.
CREATE FUNCTION served_v1(p_namespace integer, p_now double precision, p_queues integer[],
    p_limit bigint, p_granted bigint, p_worker bytea, p_peer bytea, p_number bigint,
    p_lease double precision) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF p_granted > 0 THEN
        INSERT INTO claimed (namespace, worker, number, until)
        VALUES (p_namespace, p_worker, p_number, p_now + 2 * p_lease)
        ON CONFLICT (namespace, worker, number) DO UPDATE SET until = excluded.until;
    END IF;
    IF p_peer <> '' AND p_limit > 0 THEN
        PERFORM idle_v1(p_namespace, p_now, p_peer, p_queues, p_granted >= p_limit);
    END IF;
END $$;

-- Whether a claim would find nothing and change nothing, looked at without a lock: its peer is known
-- to be idle, so that whoever stores a job after this look wakes it.
CREATE FUNCTION in_vain_v1(p_namespace integer, p_now double precision, p_queues integer[],
    p_worker bytea, p_peer bytea, p_number bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN (
        SELECT (p_peer = '' OR EXISTS (
                SELECT 1 FROM peer WHERE peer.namespace = p_namespace AND peer.name = p_peer
                    AND peer.since <> 0 AND peer.woken = 0 AND peer.queues @> p_queues
            ))
            AND (SELECT count(*) FROM queue q WHERE q.id = ANY (p_queues))
                = cardinality(p_queues)
            AND NOT EXISTS (
                SELECT 1 FROM queue q WHERE q.id = ANY (p_queues) AND (
                    q.limits <> '' OR q.lane_limits <> ''
                    OR (SELECT true FROM job WHERE job.queue = q.id AND state = 1 AND eligible = 1
                        LIMIT 1)
                    OR (SELECT true FROM job WHERE job.queue = q.id AND state = 0
                        AND ready_at <= p_now LIMIT 1)
                    OR (SELECT true FROM inbox WHERE inbox.namespace = p_namespace
                        AND inbox.queue = q.name LIMIT 1)
                )
            )
            AND NOT repeated_v1(p_namespace, p_worker, p_number)
    );
END $$;

-- End attempts, then serve the claim, if there is one. p_left, p_last and p_cancelled say where each
-- job goes: with attempts left, without, and where its cancelling was asked for. Answered are those
-- that ran under their token, by their places in the call.
CREATE FUNCTION settle_v1(p_namespace integer, p_clock double precision, p_wait text,
    p_queues integer[], p_ids bytea[], p_tokens bigint[], p_left smallint[], p_last smallint[],
    p_cancelled smallint[], p_delays double precision[], p_at double precision[],
    p_codes bytea[], p_results bytea[], p_errors bytea[], p_progress bytea[], p_backs smallint[],
    p_totals smallint[], p_ran boolean[], p_unknown smallint[],
    p_claim boolean, p_claim_queues integer[], p_limit bigint, p_worker bytea, p_peer bytea,
    p_number bigint, p_lease double precision,
    OUT now double precision, OUT listened boolean, OUT letters text, OUT places bigint[],
    OUT states smallint[], OUT limited boolean, OUT next_in double precision,
    OUT l_queue integer[], OUT l_task integer[], OUT l_id bytea[], OUT l_body bytea[],
    OUT l_lane bytea[], OUT l_batch bytea[], OUT l_token bigint[], OUT l_attempt bigint[],
    OUT l_max_attempts bigint[], OUT l_seq bigint[], OUT l_generation bigint[],
    OUT l_priority bigint[], OUT l_crashes bigint[], OUT l_unknown bigint[],
    OUT l_submitted_at double precision[], OUT l_started_at double precision[],
    OUT l_deadline_in double precision[], OUT l_unknown_for double precision[])
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off SET enable_sort = off
SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
SET jit = off AS $$
DECLARE
    locked integer[] := ARRAY(
        SELECT DISTINCT q FROM unnest(p_queues || p_claim_queues) AS q WHERE q IS NOT NULL
        ORDER BY q
    );
    changed integer[];
    effect effect_v1;
    step record;
    more boolean := false;
BEGIN
    listened := listened_v1(p_namespace);
    limited := false;
    IF p_claim AND p_limit > 0 AND p_queues = '{}' THEN
        now := now_v1(p_namespace, p_clock);
        IF in_vain_v1(p_namespace, now, p_claim_queues, p_worker, p_peer, p_number) THEN
            next_in := (
                SELECT min(due_in_v1(queue.id, settle_v1.now)) FROM queue
                WHERE queue.id = ANY (p_claim_queues) AND NOT queue.paused
            );
            RETURN;
        END IF;
    END IF;
    now := enter_v1(p_namespace, p_clock, p_wait, locked);
    limited := p_claim AND EXISTS (SELECT 1 FROM queue WHERE queue.id = ANY (p_claim_queues)
        AND (queue.limits <> '' OR queue.lane_limits <> ''));
    IF limited THEN
        RETURN;
    END IF;
    IF p_queues <> '{}' THEN
        SELECT * INTO step FROM settle_jobs_v1(p_namespace, now, p_queues, p_ids, p_tokens, p_left,
            p_last, p_cancelled, p_delays, p_at, p_codes, p_results, p_errors, p_progress, p_backs,
            p_totals, p_ran, p_unknown);
        places := step.places;
        states := step.states;
        effect := step.effect;
        changed := step.changed;
    END IF;
    IF p_claim THEN
        IF EXISTS (SELECT 1 FROM queue q JOIN inbox i ON i.namespace = p_namespace
                AND i.queue = q.name WHERE q.id = ANY (p_claim_queues)) THEN
            SELECT * INTO step FROM move_in_v1(p_namespace, now, p_claim_queues);
            effect.ready := effect.ready || (step.effect).ready;
            effect.letters := effect.letters || (step.effect).letters;
            more := step.more;
        END IF;
        SELECT * INTO step FROM serve_v1(p_namespace, now, p_claim_queues, p_limit, p_worker,
            p_peer, p_number, p_lease);
        next_in := CASE WHEN more THEN 0 ELSE step.next_in END;
        effect.ready := effect.ready || step.ready;
        IF p_limit > 0 THEN
            SELECT * INTO l_queue, l_task, l_id, l_body, l_lane, l_batch, l_token, l_attempt,
                l_max_attempts, l_seq, l_generation, l_priority, l_crashes, l_unknown,
                l_submitted_at, l_started_at, l_deadline_in, l_unknown_for
            FROM leases_v1(p_namespace, now, p_claim_queues, p_worker, p_number);
        END IF;
    END IF;
    letters := end_v1(p_namespace, now, changed, effect, p_peer, p_claim_queues);
END $$;

CREATE FUNCTION settle_jobs_v1(p_namespace integer, p_now double precision,
    p_queues integer[], p_ids bytea[], p_tokens bigint[], p_left smallint[], p_last smallint[],
    p_cancelled smallint[], p_delays double precision[], p_at double precision[],
    p_codes bytea[], p_results bytea[], p_errors bytea[], p_progress bytea[], p_backs smallint[],
    p_totals smallint[], p_ran boolean[], p_unknown smallint[],
    OUT places bigint[], OUT states smallint[], OUT effect effect_v1, OUT changed integer[]) LANGUAGE plpgsql AS $$
DECLARE
    s record;
    one effect_v1;
BEGIN
    WITH asked AS MATERIALIZED (
        SELECT * FROM unnest(p_queues, p_ids, p_tokens, p_left, p_last, p_cancelled, p_delays,
            p_at, p_codes, p_results, p_errors, p_progress, p_backs, p_totals, p_ran, p_unknown)
            WITH ORDINALITY AS a (queue, id, token, to_left, to_last, to_cancelled, delay, at,
                code, result, error, progress, back, total, ran, unknown, n)
    ), found AS MATERIALIZED (
        SELECT DISTINCT ON (job.seq) a.*, job.seq, job.crashes, job.unknown AS unknowns,
            job.unknown_since, CASE WHEN job.cancel THEN a.to_cancelled
                WHEN job.attempt < job.max_attempts THEN a.to_left ELSE a.to_last END AS state
        FROM asked a CROSS JOIN LATERAL (
            SELECT * FROM job WHERE job.queue = a.queue AND job.id = a.id OFFSET 0
        ) job WHERE job.token = a.token AND job.state = 2 ORDER BY job.seq, a.n
    )
    SELECT array_agg(f.n) AS places, array_agg(f.state) AS states,
        array_agg(DISTINCT f.queue) AS queues,
        array_agg(f.seq) FILTER (WHERE f.state > 2) AS seqs,
        array_agg(f.state) FILTER (WHERE f.state > 2) AS to_states,
        array_agg(CASE WHEN f.code = '' AND f.state = 4 THEN 'error' ELSE f.code END
           ) FILTER (WHERE f.state > 2) AS codes,
        array_agg(f.result) FILTER (WHERE f.state > 2) AS results,
        array_agg(f.error) FILTER (WHERE f.state > 2) AS errors,
        array_agg(f.progress) FILTER (WHERE f.state > 2) AS progress,
        array_agg(f.back) FILTER (WHERE f.state > 2) AS backs,
        array_agg(f.crashes) FILTER (WHERE f.state > 2) AS crashes,
        array_agg(f.ran) FILTER (WHERE f.state > 2) AS ran,
        array_agg(f.seq) FILTER (WHERE f.state < 2) AS r_seqs,
        array_agg(f.state) FILTER (WHERE f.state < 2) AS r_states,
        array_agg(CASE WHEN f.state = 0 THEN greatest(p_now, coalesce(f.at, p_now + f.delay)) END
           ) FILTER (WHERE f.state < 2) AS r_ready,
        array_agg(f.error) FILTER (WHERE f.state < 2) AS r_errors,
        array_agg(f.progress) FILTER (WHERE f.state < 2) AS r_progress,
        array_agg(f.back) FILTER (WHERE f.state < 2) AS r_backs,
        array_agg(f.crashes) FILTER (WHERE f.state < 2) AS r_crashes,
        array_agg(CASE f.unknown WHEN 0 THEN 0 WHEN 1 THEN f.unknowns ELSE f.unknowns + 1 END
           ) FILTER (WHERE f.state < 2) AS r_unknown,
        array_agg(CASE WHEN f.unknown = 1 OR f.unknown = 2 AND f.unknowns > 0 THEN f.unknown_since
            WHEN f.unknown = 2 THEN p_now END) FILTER (WHERE f.state < 2) AS r_since,
        array_agg(f.total) FILTER (WHERE f.state < 2) AS r_totals,
        array_agg(f.ran) FILTER (WHERE f.state < 2) AS r_ran
    INTO s FROM found f;
    places := s.places;
    states := s.states;
    changed := s.queues;
    effect := finish_v1(p_namespace, p_now, s.seqs, s.to_states, s.codes, s.results, s.errors,
        s.progress, s.backs, s.crashes, NULL, NULL, s.ran);
    one := requeue_v1(p_namespace, p_now, s.r_seqs, s.r_states, s.r_ready, s.r_errors,
        s.r_progress, s.r_backs, s.r_crashes, s.r_unknown, s.r_since, s.r_totals, s.r_ran);
    effect.ready := effect.ready || one.ready;
END $$;

-- Extend leases. replies: 0 lost, 1 renewed, 2 renewed and cancelling was asked for. What the
-- worker holds by claims up to p_number without naming it was granted in a reply that was lost,
-- and is released.
CREATE FUNCTION renew_v1(p_namespace integer, p_clock double precision, p_wait text,
    p_queues integer[], p_ids bytea[], p_tokens bigint[], p_progress bytea[],
    p_lease double precision, p_held boolean, p_worker bytea, p_number bigint,
    OUT now double precision, OUT listened boolean, OUT letters text, OUT replies smallint[])
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off SET enable_sort = off
SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
SET jit = off AS $$
DECLARE
    locked integer[];
    held bigint[];
    s record;
    effect effect_v1;
    one effect_v1;
BEGIN
    SELECT array_agg(q) INTO locked FROM (
        SELECT unnest(p_queues) AS q UNION
        SELECT queue FROM job WHERE p_held AND namespace = p_namespace AND worker = p_worker
            AND state = 2 AND number <= p_number
    ) l WHERE q IS NOT NULL;
    now := enter_v1(p_namespace, p_clock, p_wait, locked);
    listened := listened_v1(p_namespace);
    SELECT array_agg(job.seq) FILTER (WHERE job.seq IS NOT NULL),
        array_agg(CASE WHEN job.seq IS NULL THEN 0 WHEN job.cancel THEN 2 ELSE 1 END ORDER BY a.n)
    INTO held, replies
    FROM unnest(p_queues, p_ids, p_tokens) WITH ORDINALITY AS a (queue, id, token, n)
        LEFT JOIN LATERAL (
            SELECT * FROM job WHERE job.queue = a.queue AND job.id = a.id OFFSET 0
        ) job ON job.token = a.token AND job.state = 2;
    UPDATE job SET lease_until = renew_v1.now + p_lease WHERE seq = ANY (held);
    UPDATE job SET progress = said.progress FROM (
        SELECT j.seq, a.progress
        FROM unnest(p_queues, p_ids, p_tokens, p_progress) AS a (queue, id, token, progress)
            CROSS JOIN LATERAL (
                SELECT * FROM job WHERE job.queue = a.queue AND job.id = a.id OFFSET 0
            ) j
        WHERE a.progress IS NOT NULL AND j.token = a.token AND j.state = 2
    ) said WHERE job.seq = said.seq;
    IF p_held THEN
        SELECT array_agg(seq) FILTER (WHERE cancel) AS ended,
            array_agg(seq) FILTER (WHERE NOT cancel) AS back,
            array_agg(crashes) FILTER (WHERE cancel) AS ended_crashes,
            array_agg(crashes) FILTER (WHERE NOT cancel) AS back_crashes,
            array_agg(unknown) FILTER (WHERE NOT cancel) AS unknowns,
            array_agg(unknown_since) FILTER (WHERE NOT cancel) AS since
        INTO s FROM job WHERE namespace = p_namespace AND worker = p_worker AND state = 2
            AND number <= p_number AND seq <> ALL (coalesce(held, '{}')) AND queue = ANY (locked);
        IF s.ended IS NOT NULL THEN
            effect := finish_v1(p_namespace, now, s.ended,
                same_v1(5, s.ended), array_fill(''::bytea, ARRAY[array_length(s.ended, 1)]), NULL,
                NULL, NULL, same_v1(1, s.ended), s.ended_crashes, NULL, NULL, NULL);
        END IF;
        IF s.back IS NOT NULL THEN
            one := requeue_v1(p_namespace, now, s.back, same_v1(1, s.back), NULL, NULL, NULL,
                same_v1(1, s.back), s.back_crashes, s.unknowns, s.since, same_v1(15, s.back),
                NULL);
            effect.ready := effect.ready || one.ready;
        END IF;
    END IF;
    letters := end_v1(p_namespace, now, locked, effect, '', '{}');
END $$;

CREATE FUNCTION same_v1(p_value integer, p_like bigint[]) RETURNS smallint[]
LANGUAGE sql IMMUTABLE AS $$
    SELECT array_fill(p_value::smallint, ARRAY[array_length(p_like, 1)])
$$;

-- Begin a transaction of several statements: as enter_v1. Its client may be stopped in the midst of
-- it, which must not hold the queues for ever. Moved in is what a call may move in; "more" says
-- that some was left.
CREATE FUNCTION begin_v1(p_path text, p_namespace integer, p_clock double precision, p_wait text,
    p_idle text, p_statement text, p_queues integer[], OUT now double precision, OUT effect text,
    OUT more boolean)
LANGUAGE plpgsql AS $$
DECLARE
    moved record;
BEGIN
    PERFORM set_config('idle_in_transaction_session_timeout', p_idle, true),
        set_config('statement_timeout', p_statement, true);
    PERFORM set_config('search_path', p_path, true), set_config('jit', 'off', true),
        set_config('enable_seqscan', 'off', true), set_config('enable_sort', 'off', true),
        set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true);
    now := enter_v1(p_namespace, p_clock, p_wait, p_queues);
    more := false;
    IF EXISTS (SELECT 1 FROM queue q JOIN inbox i ON i.namespace = p_namespace AND i.queue = q.name
            WHERE q.id = ANY (p_queues)) THEN
        SELECT * INTO moved FROM move_in_v1(p_namespace, now, p_queues);
        effect := moved.effect::text;
        more := moved.more;
    END IF;
END $$;

CREATE FUNCTION name_queues_v1(p_namespace integer, p_queues bytea[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    missing bytea[];
BEGIN
    -- Again where a number was taken already.
    LOOP
        missing := ARRAY(
            SELECT DISTINCT s.name FROM unnest(p_queues) AS s (name)
            WHERE (SELECT true FROM queue WHERE queue.namespace = p_namespace
                AND queue.name = s.name LIMIT 1) IS NULL ORDER BY s.name
        );
        EXIT WHEN missing = '{}';
        INSERT INTO queue (namespace, name)
        SELECT p_namespace, s.name FROM unnest(missing) AS s (name) ON CONFLICT DO NOTHING;
    END LOOP;
END $$;

CREATE FUNCTION name_tasks_v1(p_tasks bytea[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    missing bytea[];
BEGIN
    LOOP
        missing := ARRAY(
            SELECT DISTINCT s.name FROM unnest(p_tasks) AS s (name)
            WHERE (SELECT true FROM task WHERE task.name = s.name LIMIT 1) IS NULL ORDER BY s.name
        );
        EXIT WHEN missing = '{}';
        INSERT INTO task (name) SELECT s.name FROM unnest(missing) AS s (name)
        ON CONFLICT DO NOTHING;
    END LOOP;
END $$;

-- Give queues (kind 0) and tasks (kind 1) their numbers, which never change. A transaction of its
-- own, so that nobody waits for a number.
CREATE FUNCTION name_v1(p_namespace integer, p_queues bytea[], p_tasks bytea[])
RETURNS TABLE (kind integer, number integer, label bytea)
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off SET jit = off AS $$
BEGIN
    PERFORM name_queues_v1(p_namespace, p_queues), name_tasks_v1(p_tasks);
    RETURN QUERY SELECT 0, q.id, q.name FROM queue q
        WHERE q.namespace = p_namespace AND q.name = ANY (p_queues);
    RETURN QUERY SELECT 1, t.id, t.name FROM task t WHERE t.name = ANY (p_tasks);
END $$;

-- Put together what the steps of a transaction brought about, and which queues have opened.
CREATE FUNCTION gather_v1(p_effects text[], p_queues integer[], p_counts bigint[],
    p_opened boolean[]) RETURNS effect_v1 LANGUAGE plpgsql AS $$
DECLARE
    part text;
    one effect_v1;
    whole effect_v1;
BEGIN
    FOREACH part IN ARRAY p_effects LOOP
        one := part::effect_v1;
        whole.ready := whole.ready || one.ready;
        whole.letters := whole.letters || one.letters;
    END LOOP;
    whole.ready := whole.ready || (
        SELECT array_agg(ROW (s.queue, s.n, s.opened)::ready_v1)
        FROM unnest(p_queues, p_counts, p_opened) AS s (queue, n, opened)
    );
    RETURN whole;
END $$;
