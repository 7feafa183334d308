CREATE TABLE IF NOT EXISTS moved_people (id int8 PRIMARY KEY, name text NOT NULL);
