package store

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// Event is one entry of the record of what the centre did and refused. The entries are chained by
// SHA-256, so that a change, a deletion or an insertion shows, and a truncation to who noted a
// Mark elsewhere. Every write of this package that decides something makes its own entry, in the
// same transaction; others are made by Record.
type Event struct {
	At     time.Time
	Event  string // what kind of thing, such as "enrolment-refused"; stable
	Who    string // who did it or asked for it
	What   string // what it was done to
	Where  string // address, host
	Result string // Result…
	Detail map[string]string
}

// Results.
const (
	ResultOK      = "ok"
	ResultRefused = "refused"
	ResultFailed  = "failed"
	ResultInfo    = "info"
)

// Entry is an event with its place in the chain.
type Entry struct {
	Event
	Seq        uint64 // from 1
	Prev, Hash Hash
}

// Mark is a place in the chain. Whoever keeps one elsewhere can tell later that everything before it
// is as it was.
type Mark struct {
	Seq  uint64
	Hash Hash
}

// Record appends events to the record, in their order. Who, What and Where may come from the network:
// what is too long in them is cut off, what is no text is replaced.
func (s *Store) Record(ctx context.Context, events ...Event) error {
	err := checkCount("events", len(events))
	events = slices.Clone(events)
	for i := range events {
		e := &events[i]
		e.Who, e.What, e.Where = readable(e.Who), readable(e.What), readable(e.Where)
		if err == nil {
			err = e.check()
		}
	}
	if err == nil {
		err = s.write(ctx, func(t *tx) error { return t.audit(events...) })
	}
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	return nil
}

func (e *Event) check() error {
	switch e.Result {
	case ResultOK, ResultRefused, ResultFailed, ResultInfo:
	default:
		return invalid("result: expected ok, refused, failed or info, came %q", e.Result)
	}
	return checkName("event", e.Event)
}

func (t *tx) audit(events ...Event) error {
	var seq int64
	var last string
	if err := t.one([]any{&seq, &last}, "SELECT value, hash FROM head WHERE name = 'audit'"); err != nil {
		return err
	}
	prev, err := parseHash(last)
	if err != nil {
		return err
	}
	for _, e := range events {
		detail, err := json.Marshal(e.Detail)
		if err != nil {
			return invalid("detail: %w", err)
		}
		if err := checkSize("detail", len(detail), MaxDetail); err != nil {
			return err
		}
		seq++
		h := chain(prev, uint64(seq), micro(e.At), e.Event, e.Who, e.What, e.Where, e.Result, string(detail))
		if _, err := t.exec("INSERT INTO audit (seq, at, event, who, what, place, result, detail, prev, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
			seq, micro(e.At), e.Event, e.Who, e.What, e.Where, e.Result, string(detail), prev.String(), h.String()); err != nil {
			return err
		}
		prev = h
	}
	return t.must("UPDATE head SET value = ?, hash = ? WHERE name = 'audit'", seq, prev.String())
}

// chain is an entry's hash: SHA-256 over a title, the hash of the entry before, sequence number and
// time (8 octets each, big-endian), and each text behind its length (uvarint).
func chain(prev Hash, seq uint64, at int64, texts ...string) Hash {
	b := append([]byte("wardgate-sp record 1\n"), prev[:]...)
	b = binary.BigEndian.AppendUint64(b, seq)
	b = binary.BigEndian.AppendUint64(b, uint64(at))
	for _, s := range texts {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	return sha256.Sum256(b)
}

// stored is an entry as it lies in the table.
type stored struct {
	seq, at                                               int64
	event, who, what, place, result, detail, prev, hashed string
}

const auditColumns = "SELECT seq, at, event, who, what, place, result, detail, prev, hash FROM audit"

func scanStored(r row) (e stored, err error) {
	err = r.Scan(&e.seq, &e.at, &e.event, &e.who, &e.what, &e.place, &e.result, &e.detail, &e.prev, &e.hashed)
	return e, err
}

func (e *stored) entry() (Entry, error) {
	out := Entry{Event: Event{At: fromMicro(e.at), Event: e.event, Who: e.who, What: e.what, Where: e.place, Result: e.result}, Seq: uint64(e.seq)}
	var err1, err2 error
	out.Prev, err1 = parseHash(e.prev)
	out.Hash, err2 = parseHash(e.hashed)
	if err := firstError(err1, err2, json.Unmarshal([]byte(e.detail), &out.Detail)); err != nil {
		return out, fmt.Errorf("%w: entry %d: %w", ErrDamaged, e.seq, err)
	}
	return out, nil
}

// Entries returns the record's entries after a sequence number, at most limit (0: MaxPage).
func (s *Store) Entries(ctx context.Context, after uint64, limit int) ([]Entry, error) {
	var out []Entry
	err := s.reader(ctx).rows(func(r row) error {
		raw, err := scanStored(r)
		if err != nil {
			return err
		}
		e, err := raw.entry()
		out = append(out, e)
		return err
	}, auditColumns+" WHERE seq > ? ORDER BY seq LIMIT ?", int64(min(after, 1<<63-1)), page(limit))
	if err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	return out, nil
}

// RecordMark returns the place of the record's last entry.
func (s *Store) RecordMark(ctx context.Context) (m Mark, err error) {
	var seq int64
	var hash string
	if err = s.reader(ctx).one([]any{&seq, &hash}, "SELECT value, hash FROM head WHERE name = 'audit'"); err == nil {
		m.Seq = uint64(seq)
		m.Hash, err = parseHash(hash)
	}
	if err != nil {
		return Mark{}, fmt.Errorf("record: %w", err)
	}
	return m, nil
}

// VerifyRecord checks the chain from a mark (zero: from the first entry) to its end, and returns the
// last mark. The error is ErrDamaged and names the first entry that is not as it was.
func (s *Store) VerifyRecord(ctx context.Context, from Mark) (Mark, error) {
	damaged := func(seq int64, format string, args ...any) error {
		return fmt.Errorf("%w: the record, entry %d: "+format, append([]any{ErrDamaged, seq}, args...)...)
	}
	end, err := s.RecordMark(ctx)
	if err != nil {
		return Mark{}, err
	}
	if end.Seq < from.Seq {
		return Mark{}, damaged(int64(from.Seq), "expected at least as many entries, there are %d: it was cut off", end.Seq)
	}
	at := from
	if from.Seq > 0 {
		at = Mark{Seq: from.Seq - 1}
	}
	for at.Seq < end.Seq {
		to := min(end.Seq, at.Seq+1000)
		err = s.reader(ctx).rows(func(r row) error {
			e, err := scanStored(r)
			if err != nil {
				return err
			}
			if e.seq != int64(at.Seq)+1 {
				return damaged(int64(at.Seq)+1, "expected it, came entry %d", e.seq)
			}
			prev, err := parseHash(e.prev)
			if err != nil {
				return err
			}
			// What was before the mark is not looked at.
			if uint64(e.seq) != from.Seq && prev != at.Hash {
				return damaged(e.seq, "expected the hash %s of the entry before, came %s", at.Hash, prev)
			}
			h := chain(prev, uint64(e.seq), e.at, e.event, e.who, e.what, e.place, e.result, e.detail)
			if h.String() != e.hashed {
				return damaged(e.seq, "expected the hash %s of its content, came %s", h, e.hashed)
			}
			if uint64(e.seq) == from.Seq && h != from.Hash {
				return damaged(e.seq, "expected the hash %s that was noted, came %s", from.Hash, h)
			}
			at = Mark{uint64(e.seq), h}
			return nil
		}, auditColumns+" WHERE seq > ? AND seq <= ? ORDER BY seq", int64(at.Seq), int64(to))
		if err != nil {
			return Mark{}, err
		}
		if at.Seq != to {
			return Mark{}, damaged(int64(at.Seq)+1, "expected it, it is missing")
		}
	}
	if at != end {
		return Mark{}, damaged(int64(end.Seq), "expected the hash %s, which the database noted, came %s", end.Hash, at.Hash)
	}
	return end, nil
}
