CREATE TABLE campaigns (
    id           bigint PRIMARY KEY,
    title        text   NOT NULL,
    story        text   NOT NULL,
    category     text   NOT NULL,
    goal_cents   bigint NOT NULL CHECK (goal_cents > 0),
    raised_cents bigint NOT NULL DEFAULT 0 CHECK (raised_cents >= 0),
    -- The words of title and story, for searching while OpenSearch is away.
    words        tsvector GENERATED ALWAYS AS (to_tsvector('simple', title || ' ' || story)) STORED
);

CREATE INDEX campaigns_words ON campaigns USING gin (words);

CREATE TABLE donations (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    campaign_id     bigint NOT NULL REFERENCES campaigns (id),
    amount_cents    bigint NOT NULL CHECK (amount_cents > 0),
    donor           text   NOT NULL,
    idempotency_key text   NOT NULL,
    booked_at       timestamptz NOT NULL DEFAULT now(),
    UNIQUE (campaign_id, idempotency_key)
);
