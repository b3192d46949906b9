-- End a job that was committed with a unique key which another one holds by now. The record says
-- so as the attempts of other jobs do: [0, "duplicate", "Duplicate", message] in MessagePack.
CREATE FUNCTION skip_v1(p_namespace integer, p_now double precision, p_seqs bigint[],
    p_holder bytea) RETURNS effect_v1 LANGUAGE plpgsql AS $$
DECLARE
    message bytea := 'its unique key is held by job '''::bytea || p_holder || '''';
BEGIN
    RETURN finish_v1(p_namespace, p_now, p_seqs, same_v1(6, p_seqs), ARRAY['duplicate'::bytea],
        NULL, ARRAY['\x9400a9'::bytea || 'duplicate' || '\xa9' || 'Duplicate' || '\xdb'
        || int4send(length(message)) || message], NULL, same_v1(0, p_seqs), ARRAY[0]::bigint[],
        NULL, NULL, NULL);
END $$;

-- Move in what is committed for queues whose rows the caller has locked, in the order in which it
-- was submitted and as of the time of that. "more" says that a call may not move in as much as
-- there is. What is taken is what is seen: a transaction that began earlier may commit later.
CREATE FUNCTION move_in_v1(p_namespace integer, p_now double precision, p_queues integer[],
    OUT effect effect_v1, OUT more boolean) LANGUAGE plpgsql AS $$
DECLARE
    tids tid[];
    waiting inbox[];
    jobs new_job_v1[];
    -- Which of them something stands against, by their places, and how many may be moved in.
    doubtful integer[];
    total integer;
    place integer := 1;
    last integer;
    i integer := 1;
    step record;
BEGIN
    WITH seen AS MATERIALIZED (
        SELECT i.tid, i.whole, row_number() OVER (ORDER BY i.n) AS n,
            sum(i.size) OVER (ORDER BY i.n) - i.size AS before
        FROM queue q CROSS JOIN LATERAL (
            SELECT inbox.ctid AS tid, inbox AS whole, inbox.n, octet_length(inbox.body) AS size
            FROM inbox WHERE inbox.namespace = p_namespace AND inbox.queue = q.name
            ORDER BY inbox.n LIMIT 10001
        ) i WHERE q.id = ANY (p_queues)
    )
    SELECT array_agg(s.tid ORDER BY s.n), array_agg(s.whole ORDER BY s.n),
        count(*) < (SELECT count(*) FROM seen)
    INTO tids, waiting, more FROM seen s WHERE s.n <= 10000 AND s.before < 16777216;
    IF tids IS NULL THEN
        RETURN;
    END IF;
    PERFORM name_tasks_v1(ARRAY(SELECT DISTINCT w.task FROM unnest(waiting) AS w));
    SELECT array_agg(ROW (q.id, t.id, w.id, w.submission, w.body, w.priority, w.delay, w.run_at,
            w.deadline_in, w.deadline_at, w.max_attempts, w.lane, w.batch, w.unique_mode,
            w.unique_ttl, w.unique_key, w.result_ttl, w.failure_ttl, w.id_ttl, NULL, w.origin,
            least(w.submitted_at, p_now), NULL)::new_job_v1 ORDER BY w.n)
    INTO jobs FROM unnest(waiting) AS w
        CROSS JOIN LATERAL (SELECT id FROM task WHERE task.name = w.task OFFSET 0) t
        CROSS JOIN LATERAL (
            SELECT id FROM queue WHERE queue.namespace = p_namespace AND queue.name = w.queue OFFSET 0
        ) q;
    doubtful := ARRAY(
        SELECT DISTINCT s.n::integer FROM (
            SELECT j.*, row_number() OVER (PARTITION BY j.queue, j.id ORDER BY j.n) AS of_id,
                row_number() OVER (PARTITION BY j.queue, j.unique_key ORDER BY j.n) AS of_key
            FROM (
                SELECT u.queue, u.id, u.unique_key, row_number() OVER () AS n
                FROM unnest(jobs) AS u
            ) j
        ) s
        WHERE s.of_id > 1 OR s.unique_key IS NOT NULL AND s.of_key > 1
            -- The limits have each looked up, whatever the planner believes of the tables.
            OR (SELECT true FROM job WHERE job.queue = s.queue AND job.id = s.id LIMIT 1)
            OR (SELECT true FROM done WHERE done.queue = s.queue AND done.id = s.id LIMIT 1)
            OR s.unique_key IS NOT NULL AND (SELECT true FROM unique_key u
                WHERE u.queue = s.queue AND u.key = s.unique_key
                    AND (u.until IS NULL OR u.until > p_now) LIMIT 1)
        ORDER BY 1
    );
    total := cardinality(jobs);
    IF cardinality(doubtful) > 250 THEN
        total := doubtful[251] - 1;
        more := true;
    END IF;
    -- Nobody else deletes these rows, and nobody changes them.
    DELETE FROM inbox WHERE ctid = ANY (tids[:total]);
    UPDATE queue SET said = true, now = greatest(queue.now, p_now)
    WHERE queue.id IN (SELECT u.queue FROM unnest(jobs[:total]) AS u)
        AND (NOT queue.said OR queue.now < p_now);
    WHILE place <= total LOOP
        IF place = doubtful[i] THEN
            last := place;
            WHILE doubtful[i + 1] = last + 1 AND last < total LOOP
                i := i + 1;
                last := last + 1;
            END LOOP;
            i := i + 1;
            SELECT * INTO step FROM judge_v1(p_namespace, p_now, jobs[place:last], true);
            effect.ready := effect.ready || (step.effect).ready;
            effect.letters := effect.letters || (step.effect).letters;
        ELSE
            last := least(total, doubtful[i] - 1);
            SELECT * INTO step FROM insert_v1(p_namespace, p_now, jobs[place:last], NULL);
            effect.ready := effect.ready || step.ready;
        END IF;
        place := last + 1;
    END LOOP;
END $$;

-- Move in what is committed for these queues, and give numbers to those that have none. It is called
-- until there is no more. Where none are named, that is for all of the namespace that nobody holds:
-- who sweeps does not wait for one queue with the others in hand.
CREATE FUNCTION admit_v1(p_namespace integer, p_clock double precision, p_wait text,
    p_queues bytea[], OUT now double precision, OUT listened boolean, OUT letters text,
    OUT more boolean)
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off SET enable_sort = off
SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
SET jit = off AS $$
DECLARE
    names bytea[];
    numbers integer[];
    moved record;
BEGIN
    listened := listened_v1(p_namespace);
    IF p_queues IS NOT NULL THEN
        names := ARRAY(SELECT s.queue FROM unnest(p_queues) AS s (queue) WHERE EXISTS (
            SELECT 1 FROM inbox WHERE inbox.namespace = p_namespace AND inbox.queue = s.queue
        ));
    ELSE
        -- One queue after the other, however many jobs each has.
        names := ARRAY(
            WITH RECURSIVE found (queue) AS (
                (SELECT queue FROM inbox WHERE namespace = p_namespace ORDER BY queue LIMIT 1)
                UNION ALL
                SELECT i.queue FROM found CROSS JOIN LATERAL (
                    SELECT inbox.queue FROM inbox WHERE inbox.namespace = p_namespace
                        AND inbox.queue > found.queue ORDER BY inbox.queue LIMIT 1
                ) i
            )
            SELECT queue FROM found LIMIT 1001
        );
    END IF;
    more := cardinality(names) > 1000;
    names := names[:1000];
    PERFORM name_queues_v1(p_namespace, names);
    numbers := ARRAY(
        SELECT q.id FROM unnest(names) AS s (name) CROSS JOIN LATERAL (
            SELECT id FROM queue WHERE queue.namespace = p_namespace AND queue.name = s.name OFFSET 0
        ) q
    );
    IF p_queues IS NULL THEN
        numbers := ARRAY(
            SELECT id FROM queue WHERE id = ANY (numbers) ORDER BY id
            FOR NO KEY UPDATE SKIP LOCKED
        );
    END IF;
    now := enter_v1(p_namespace, p_clock, p_wait, numbers);
    SELECT * INTO moved FROM move_in_v1(p_namespace, now, numbers);
    more := (more OR moved.more) AND numbers <> '{}';
    letters := end_v1(p_namespace, now, '{}', moved.effect, '', '{}');
END $$;

-- Store jobs in the transaction of a user, and answer as submit_v1 does, as far as can be seen
-- without a lock: it waits for nobody, and nobody waits for the transaction. p_same_ids and
-- p_same_keys are the places in the call of the jobs before with the same id or unique key. p_wake
-- is what stands before and behind the name of a peer in the notice that wakes it. No time is
-- answered where the namespace is not the storage's.
CREATE FUNCTION submit_within_v1(p_namespace integer, p_name bytea, p_clock double precision,
    p_wake bytea[], p_same_ids integer[], p_same_keys integer[], p_plain boolean,
    p_queues bytea[], p_tasks bytea[], p_ids bytea[], p_submissions bytea[], p_bodies bytea[],
    p_priorities bigint[], p_delays double precision[], p_run_at double precision[],
    p_deadline_in double precision[], p_deadline_at double precision[], p_max_attempts bigint[],
    p_lanes bytea[], p_batches bytea[], p_modes smallint[], p_unique_ttls double precision[],
    p_keys bytea[], p_result_ttls double precision[], p_failure_ttls double precision[],
    p_id_ttls double precision[], p_not_after double precision[], p_origins bytea[],
    OUT now double precision, OUT statuses smallint[], OUT ids bytea[], OUT states smallint[],
    OUT seqs bigint[], OUT generations bigint[])
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET enable_seqscan = off
SET enable_sort = off SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan SET jit = off AS $$
DECLARE
    -- To look at the inbox would let serializable transactions that submit fail for each other.
    looks boolean := current_setting('transaction_isolation') <> 'serializable';
    numbers integer[];
    fresh boolean[];
    judged record;
BEGIN
    IF NOT EXISTS (SELECT 1 FROM namespace WHERE id = p_namespace AND name = p_name) THEN
        RETURN;
    END IF;
    now := now_v1(p_namespace, p_clock);
    numbers := ARRAY(
        SELECT (SELECT q.id FROM queue q WHERE q.namespace = p_namespace AND q.name = s.queue
            LIMIT 1)
        FROM unnest(p_queues) WITH ORDINALITY AS s (queue, n) ORDER BY s.n
    );
    IF p_plain THEN
        -- The limit has each id looked up, whatever the planner believes of tables that grow.
        PERFORM 1 FROM queue q WHERE q.id = ANY (numbers)
            AND (q.draining OR q.max_length IS NOT NULL)
        UNION ALL
        SELECT 1 FROM unnest(numbers, p_queues, p_ids) AS s (number, queue, id) CROSS JOIN LATERAL (
            (SELECT 1 FROM job WHERE job.queue = s.number AND job.id = s.id LIMIT 1)
            UNION ALL
            (SELECT 1 FROM done WHERE done.queue = s.number AND done.id = s.id LIMIT 1)
            UNION ALL
            (SELECT 1 FROM inbox WHERE looks AND inbox.namespace = p_namespace
                AND inbox.queue = s.queue AND inbox.id = s.id LIMIT 1)
        ) stored;
    END IF;
    IF NOT p_plain OR FOUND THEN
        SELECT * INTO judged FROM foresee_v1(p_namespace, now, looks, numbers, p_same_ids,
            p_same_keys, p_queues, p_ids, p_submissions, p_delays, p_run_at, p_keys, p_not_after);
        statuses := judged.statuses;
        ids := judged.ids;
        states := judged.states;
        seqs := judged.seqs;
        generations := judged.generations;
        fresh := judged.fresh;
    ELSE
        states := ARRAY(SELECT (coalesce(s.run_at, now + s.delay) <= now)::integer
            FROM unnest(p_delays, p_run_at) WITH ORDINALITY AS s (delay, run_at, n) ORDER BY s.n);
        seqs := array_fill(0::bigint, ARRAY[cardinality(p_ids)]);
    END IF;
    INSERT INTO inbox (namespace, submitted_at, queue, task, id, submission, body, priority, delay,
        run_at, deadline_in, deadline_at, max_attempts, lane, batch, unique_mode, unique_ttl,
        unique_key, result_ttl, failure_ttl, id_ttl, origin)
    SELECT p_namespace, submit_within_v1.now, s.queue, s.task, s.id, s.submission, s.body,
        s.priority, s.delay, s.run_at, s.deadline_in, s.deadline_at, s.max_attempts, s.lane,
        s.batch, s.unique_mode, s.unique_ttl, s.unique_key, s.result_ttl, s.failure_ttl, s.id_ttl,
        s.origin
    FROM unnest(p_queues, p_tasks, p_ids, p_submissions, p_bodies, p_priorities, p_delays,
        p_run_at, p_deadline_in, p_deadline_at, p_max_attempts, p_lanes, p_batches, p_modes,
        p_unique_ttls, p_keys, p_result_ttls, p_failure_ttls, p_id_ttls, p_origins, fresh)
        WITH ORDINALITY AS s (queue, task, id, submission, body, priority, delay, run_at,
        deadline_in, deadline_at, max_attempts, lane, batch, unique_mode, unique_ttl, unique_key,
        result_ttl, failure_ttl, id_ttl, origin, fresh, n)
    WHERE coalesce(s.fresh, true) ORDER BY s.n;
    -- Nobody is locked or marked here, since others would wait. What is sent twice is told once.
    PERFORM pg_notify(w.channel, '.0:' || translate(encode(p_wake[1] || '\xdb'
        || int4send(length(w.name)) || w.name || p_wake[2], 'base64'), E'\n', ''))
    FROM (
        SELECT DISTINCT p.channel, p.name FROM (
            SELECT s.queue, count(*) AS n
            FROM unnest(numbers, states, fresh) AS s (queue, state, fresh)
            WHERE s.state = 1 AND coalesce(s.fresh, true) GROUP BY s.queue
        ) r JOIN queue q ON q.id = r.queue AND NOT q.paused AND q.parked_until IS NULL
        CROSS JOIN LATERAL (
            SELECT peer.channel, peer.name FROM peer
            WHERE peer.namespace = p_namespace AND r.queue = ANY (peer.queues)
                AND (peer.woken = 0 OR peer.woken <= submit_within_v1.now - 1)
                AND length(peer.name) < 4096 AND alive_v1(peer.pid, peer.started)
            ORDER BY peer.woken = 0 DESC, peer.since DESC LIMIT r.n
        ) p
    ) w;
END $$;
REVOKE ALL ON FUNCTION submit_within_v1 FROM PUBLIC;

-- Judge jobs of a transaction one after the other. "fresh" says which are stored: none where a
-- queue is full or being drained.
CREATE FUNCTION foresee_v1(p_namespace integer, p_now double precision, p_looks boolean,
    p_numbers integer[], p_same_ids integer[], p_same_keys integer[], p_queues bytea[],
    p_ids bytea[], p_submissions bytea[], p_delays double precision[],
    p_run_at double precision[], p_keys bytea[], p_not_after double precision[],
    OUT statuses smallint[], OUT ids bytea[], OUT states smallint[], OUT seqs bigint[],
    OUT generations bigint[], OUT fresh boolean[]) LANGUAGE plpgsql AS $$
DECLARE
    held record;
    status integer;
    same integer;
    -- Which answers name a job of this very call.
    own boolean[];
    refusing integer[];
BEGIN
    FOR n IN 1 .. cardinality(p_ids) LOOP
        status := NULL;
        generations[n] := 0;
        own[n] := false;
        SELECT * INTO held FROM held_v1(p_numbers[n], p_ids[n], p_now);
        IF held.seq IS NOT NULL AND NOT held.expired THEN
            IF held.submission = p_submissions[n] THEN
                status := (held.state = 5)::integer;
            ELSIF held.state <> 5 THEN
                status := 1;
            END IF;
            generations[n] := held.generation + (status IS NULL)::integer;
        END IF;
        IF status IS NULL AND p_looks THEN
            SELECT * INTO held FROM awaited_v1(p_namespace, p_now, p_queues[n], p_ids[n], NULL);
            IF FOUND THEN
                status := (held.submission <> p_submissions[n])::integer;
            END IF;
        END IF;
        IF status IS NULL THEN
            same := p_same_ids[n];
            WHILE same > 0 AND NOT fresh[same] LOOP
                same := p_same_ids[same];
            END LOOP;
        END IF;
        IF status IS NULL AND same = 0 AND p_keys[n] IS NOT NULL THEN
            SELECT * INTO held FROM holder_v1(p_numbers[n], p_keys[n], p_now);
            IF NOT FOUND AND p_looks THEN
                SELECT * INTO held
                FROM awaited_v1(p_namespace, p_now, p_queues[n], NULL, p_keys[n]);
            END IF;
            IF held.id IS NOT NULL THEN
                status := 1;
                generations[n] := held.generation;
            ELSE
                same := p_same_keys[n];
                WHILE same > 0 AND NOT fresh[same] LOOP
                    same := p_same_keys[same];
                END LOOP;
            END IF;
        END IF;
        fresh[n] := false;
        IF status IS NOT NULL THEN
            statuses[n] := status;
            ids[n] := held.id;
            states[n] := shown_v1(held.state, held.deadline_at, p_now);
            seqs[n] := held.place;
        ELSIF same > 0 THEN
            statuses[n] := (p_ids[same] <> p_ids[n]
                OR p_submissions[same] <> p_submissions[n])::integer;
            ids[n] := p_ids[same];
            states[n] := states[same];
            seqs[n] := 0;
            generations[n] := generations[same];
            own[n] := true;
        ELSE
            ids[n] := p_ids[n];
            seqs[n] := 0;
            IF p_not_after[n] < p_now THEN
                statuses[n] := 5;
                states[n] := 1;
                generations[n] := 0;
            ELSE
                statuses[n] := 0;
                states[n] := (coalesce(p_run_at[n], p_now + p_delays[n]) <= p_now)::integer;
                fresh[n] := true;
                own[n] := true;
            END IF;
        END IF;
    END LOOP;
    refusing := ARRAY(
        SELECT q.id FROM (
            SELECT s.queue, count(*) AS n FROM unnest(p_numbers, fresh) AS s (queue, fresh)
            WHERE s.fresh GROUP BY s.queue
        ) s JOIN queue q ON q.id = s.queue
        WHERE q.draining OR q.max_length < s.n + waiting_v1(q.id) + (
            SELECT count(*) FROM inbox WHERE p_looks AND inbox.namespace = p_namespace
                AND inbox.queue = q.name
        )
    );
    IF refusing = '{}' THEN
        RETURN;
    END IF;
    FOR n IN 1 .. cardinality(p_ids) LOOP
        IF own[n] THEN
            statuses[n] := CASE WHEN NOT coalesce(p_numbers[n] = ANY (refusing), false) THEN 4
                WHEN (SELECT draining FROM queue WHERE id = p_numbers[n]) THEN 3 ELSE 2 END;
            ids[n] := p_ids[n];
            states[n] := 1;
            seqs[n] := 0;
            generations[n] := 0;
            fresh[n] := false;
        END IF;
    END LOOP;
END $$;

-- The first job in the inbox with an id or a unique key, as it will be.
CREATE FUNCTION awaited_v1(p_namespace integer, p_now double precision, p_queue bytea, p_id bytea,
    p_key bytea)
RETURNS TABLE (seq bigint, place bigint, state smallint, generation bigint, submission bytea,
    deadline_at double precision, id bytea, expired boolean) LANGUAGE plpgsql STABLE AS $$
DECLARE
    i inbox;
BEGIN
    IF p_key IS NULL THEN
        SELECT * INTO i FROM inbox WHERE inbox.namespace = p_namespace AND inbox.queue = p_queue
            AND inbox.id = p_id ORDER BY inbox.n LIMIT 1;
    ELSE
        SELECT * INTO i FROM inbox WHERE inbox.namespace = p_namespace AND inbox.queue = p_queue
            AND inbox.unique_key = p_key AND (inbox.unique_mode <> 2
                OR inbox.submitted_at + inbox.unique_ttl > p_now)
            ORDER BY inbox.n LIMIT 1;
    END IF;
    IF FOUND THEN
        RETURN QUERY SELECT 0::bigint, 0::bigint, (coalesce(i.run_at, i.submitted_at + i.delay)
                <= p_now)::integer::smallint, 0::bigint, i.submission,
            least(i.submitted_at + i.deadline_in, i.deadline_at), i.id, false;
    END IF;
END $$;
