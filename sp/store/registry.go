package store

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"wardgate/sp/registry"
)

// Revision numbers the states of the registry: 0 is the empty one before the first Apply.
type Revision uint64

// The kinds of objects, as they are in the table.
const (
	kindMember     = "member"
	kindDevice     = "device"
	kindService    = "service"
	kindMembership = "membership" // its name is DEVICE/SERVICE
	kindContract   = "contract"
)

// Applied is one entry of the registry's history.
type Applied struct {
	Revision                Revision
	At                      time.Time
	Who, Why                string
	Added, Changed, Removed int  // objects
	Hash                    Hash // of all objects' kinds, names and hashes
}

// Change is what Apply does.
type Change struct {
	Expected Revision // the revision that the caller's plan was made from
	Registry *registry.Registry
	Who, Why string
	// Jobs are put into the queue in the same transaction, so that no crash comes between the change
	// and the work that follows from it. Wanted is set to the new revision.
	Jobs []Job
}

// object is a version of an object of the registry.
type object struct {
	kind, name string
	value      []byte // JSON
	hash       string
}

type objectKey struct{ kind, name string }

// snapshot is a registry that was decoded, and the hashes of its objects.
type snapshot struct {
	revision Revision
	registry *registry.Registry
	hashes   map[objectKey]string
}

// Apply makes a registry the current one, as one revision. Where another revision than c.Expected is
// current, the error is a *ConflictError and nothing changes. A registry that is equal to the
// current one makes no revision: the current one's entry is returned, and no job is made.
//
// Each object is kept once a version, so that history costs what was changed, not what there is.
func (s *Store) Apply(ctx context.Context, c Change, now time.Time) (Applied, error) {
	if c.Registry == nil {
		return Applied{}, invalid("apply: expected a registry, came none")
	}
	if err := firstError(
		checkText("who", c.Who, MaxName, true),
		checkText("why", c.Why, MaxText, false),
		checkJobs(c.Jobs, false),
	); err != nil {
		return Applied{}, fmt.Errorf("apply: %w", err)
	}
	objects, err := objectsOf(c.Registry.Content())
	if err != nil {
		return Applied{}, fmt.Errorf("apply: %w", err)
	}
	// What a revision holds never changes: the difference is found before the writer is asked.
	old, err := s.hashesAt(ctx, c.Expected)
	if err != nil {
		return Applied{}, fmt.Errorf("apply: %w", err)
	}
	next := Revision(uint64(c.Expected) + 1)
	done := Applied{Revision: next, At: fromMicro(micro(now)), Who: c.Who, Why: c.Why}
	hashes := make(map[objectKey]string, len(objects))
	sum := sha256.New()
	var put []object
	var end []objectKey
	for _, o := range objects {
		k := objectKey{o.kind, o.name}
		hashes[k] = o.hash
		fmt.Fprintf(sum, "%s\x00%s\x00%s\n", o.kind, o.name, o.hash)
		switch was, there := old[k]; {
		case !there:
			done.Added++
			put = append(put, o)
		case was != o.hash:
			done.Changed++
			put, end = append(put, o), append(end, k)
		}
	}
	for k := range old {
		if _, stays := hashes[k]; !stays {
			done.Removed++
			end = append(end, k)
		}
	}
	slices.SortFunc(end, func(a, b objectKey) int {
		return cmp.Or(strings.Compare(a.kind, b.kind), strings.Compare(a.name, b.name))
	})
	done.Hash = Hash(sum.Sum(nil))
	unchanged := len(put)+len(end) == 0
	err = s.write(ctx, func(t *tx) error {
		var at int64
		if err := t.one([]any{&at}, "SELECT value FROM head WHERE name = 'registry'"); err != nil {
			return err
		}
		if Revision(at) != c.Expected {
			return &ConflictError{Expected: c.Expected, Current: Revision(at)}
		}
		if unchanged {
			return nil
		}
		if _, err := t.exec("INSERT INTO revision (revision, applied_at, who, why, added, changed, removed, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
			int64(next), micro(now), c.Who, c.Why, done.Added, done.Changed, done.Removed, done.Hash.String()); err != nil {
			return err
		}
		for _, k := range end {
			if err := t.must("UPDATE object SET until = ? WHERE kind = ? AND name = ? AND until IS NULL", int64(next), k.kind, k.name); err != nil {
				return err
			}
		}
		for _, o := range put {
			if _, err := t.exec("INSERT INTO object (kind, name, since, hash, value) VALUES (?, ?, ?, ?, ?)",
				o.kind, o.name, int64(next), o.hash, string(o.value)); err != nil {
				return err
			}
		}
		if err := t.must("UPDATE head SET value = ?, hash = ? WHERE name = 'registry'", int64(next), done.Hash.String()); err != nil {
			return err
		}
		t.moved = true
		jobs := slices.Clone(c.Jobs)
		for i := range jobs {
			jobs[i].Wanted = uint64(next)
		}
		if err := t.enqueue(jobs, now); err != nil {
			return err
		}
		return t.audit(Event{At: now, Event: "registry-applied", Who: c.Who, What: "revision " + strconv.FormatUint(uint64(next), 10), Result: ResultOK, Detail: map[string]string{
			"why": c.Why, "hash": done.Hash.String(),
			"added": strconv.Itoa(done.Added), "changed": strconv.Itoa(done.Changed), "removed": strconv.Itoa(done.Removed),
		}})
	})
	if err != nil {
		return Applied{}, fmt.Errorf("apply: %w", err)
	}
	if unchanged {
		if c.Expected == 0 {
			return Applied{}, nil // an empty registry where there has never been one
		}
		return s.applied(ctx, c.Expected)
	}
	s.keep(&snapshot{next, c.Registry, hashes})
	return done, nil
}

// keep remembers the newest registry that was decoded.
func (s *Store) keep(n *snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil || s.current.revision < n.revision {
		s.current = n
	}
}

func (s *Store) kept(at Revision) *snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != nil && s.current.revision == at {
		return s.current
	}
	return nil
}

// objectsOf writes each object of a registry, in the order of the registry's canonical form.
func objectsOf(c registry.Content) ([]object, error) {
	out := make([]object, 0, len(c.Members)+len(c.Devices)+len(c.Services)+len(c.Memberships)+len(c.Contracts))
	add := func(kind, name string, v any) error {
		value, err := json.Marshal(v)
		if err != nil {
			return invalid("%s %s: %w", kind, name, err)
		}
		if err := firstError(checkName(kind, name), checkSize(kind+" "+name, len(value), MaxObject)); err != nil {
			return err
		}
		out = append(out, object{kind, name, value, Hash(sha256.Sum256(value)).String()})
		return nil
	}
	for i := range c.Members {
		if err := add(kindMember, c.Members[i].Name, &c.Members[i]); err != nil {
			return nil, err
		}
	}
	for i := range c.Devices {
		if err := add(kindDevice, c.Devices[i].Name, &c.Devices[i]); err != nil {
			return nil, err
		}
	}
	for i := range c.Services {
		if err := add(kindService, c.Services[i].Name, &c.Services[i]); err != nil {
			return nil, err
		}
	}
	for i := range c.Memberships {
		m := &c.Memberships[i]
		if err := add(kindMembership, membershipKey(m).name, m); err != nil {
			return nil, err
		}
	}
	for i := range c.Contracts {
		if err := add(kindContract, c.Contracts[i].Name, &c.Contracts[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

const objectsAt = " FROM object WHERE since <= ? AND (until IS NULL OR until > ?)"

func (s *Store) hashesAt(ctx context.Context, at Revision) (map[objectKey]string, error) {
	if n := s.kept(at); n != nil {
		return n.hashes, nil
	}
	out := map[objectKey]string{}
	err := s.reader(ctx).rows(func(r row) error {
		var k objectKey
		var hash string
		if err := r.Scan(&k.kind, &k.name, &hash); err != nil {
			return err
		}
		out[k] = hash
		return nil
	}, "SELECT kind, name, hash"+objectsAt, int64(at), int64(at))
	return out, err
}

// Current returns the current registry and its revision.
func (s *Store) Current(ctx context.Context) (*registry.Registry, Revision, error) {
	var at int64
	if err := s.reader(ctx).one([]any{&at}, "SELECT value FROM head WHERE name = 'registry'"); err != nil {
		return nil, 0, fmt.Errorf("current registry: %w", err)
	}
	r, err := s.At(ctx, Revision(at))
	return r, Revision(at), err
}

// Recent returns the registry as it was at some moment of the last while, and its revision: without asking
// the database where somebody has asked for the heads since (Wait does), otherwise as Current does. What
// this instance applied is always in it.
func (s *Store) Recent(ctx context.Context, while time.Duration) (*registry.Registry, Revision, error) {
	s.mu.Lock()
	n, seen, at := s.current, s.seen, s.seenAt
	s.mu.Unlock()
	if n != nil && n.revision >= seen && time.Since(at) < while { // by the machine's clock, as Wait's
		return n.registry, n.revision, nil
	}
	return s.Current(ctx)
}

// At returns the registry as it was at a revision: ErrNotFound for one that has not been yet.
func (s *Store) At(ctx context.Context, at Revision) (*registry.Registry, error) {
	if n := s.kept(at); n != nil {
		return n.registry, nil
	}
	// One at a time: when the registry has changed, everybody asks at once.
	select {
	case s.decoding <- struct{}{}:
		defer func() { <-s.decoding }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if n := s.kept(at); n != nil {
		return n.registry, nil
	}
	var want Applied
	if at > 0 {
		var err error
		if want, err = s.applied(ctx, at); err != nil {
			return nil, err
		}
	}
	n, err := s.snapshotAt(ctx, at)
	if err != nil {
		return nil, fmt.Errorf("registry at revision %d: %w", at, err)
	}
	if at > 0 && n.sum() != want.Hash {
		return nil, fmt.Errorf("%w: registry at revision %d: it is not what was applied: its hash differs", ErrDamaged, at)
	}
	s.keep(n)
	return n.registry, nil
}

// snapshotAt reads a registry: what is different from the one that is kept, where that is an older one.
func (s *Store) snapshotAt(ctx context.Context, at Revision) (*snapshot, error) {
	s.mu.Lock()
	base := s.current
	s.mu.Unlock()
	if base == nil || base.revision >= at {
		base = &snapshot{hashes: map[objectKey]string{}}
	}
	n := &snapshot{revision: at, hashes: maps.Clone(base.hashes)}
	var c registry.Content
	gone := map[objectKey]bool{} // or replaced
	if base.revision > 0 {
		// Objects that ended since, and were in it.
		err := s.reader(ctx).rows(func(r row) error {
			var k objectKey
			err := r.Scan(&k.kind, &k.name)
			gone[k] = true
			delete(n.hashes, k)
			return err
		}, "SELECT kind, name FROM object WHERE until > ? AND until <= ? AND since <= ?", int64(base.revision), int64(at), int64(base.revision))
		if err != nil {
			return nil, err
		}
		c = without(base.registry.Content(), gone)
	}
	err := s.reader(ctx).rows(func(r row) error {
		var k objectKey
		var hash, value string
		if err := r.Scan(&k.kind, &k.name, &hash, &value); err != nil {
			return err
		}
		if Hash(sha256.Sum256([]byte(value))).String() != hash {
			return fmt.Errorf("%w: %s %s is not what was stored: its hash differs", ErrDamaged, k.kind, k.name)
		}
		n.hashes[k] = hash
		switch k.kind {
		case kindMember:
			return decode(&c.Members, k, value)
		case kindDevice:
			return decode(&c.Devices, k, value)
		case kindService:
			return decode(&c.Services, k, value)
		case kindMembership:
			return decode(&c.Memberships, k, value)
		case kindContract:
			return decode(&c.Contracts, k, value)
		}
		return fmt.Errorf("%w: expected an object of the registry, came a %q", ErrDamaged, k.kind)
	}, "SELECT kind, name, hash, value FROM object WHERE since > ? AND since <= ? AND (until IS NULL OR until > ?)", int64(base.revision), int64(at), int64(at))
	if err != nil {
		return nil, err
	}
	n.registry, err = registry.New(c)
	return n, err
}

// sum is the hash of all objects' kinds, names and hashes, in the order of the canonical form.
func (n *snapshot) sum() Hash {
	h := sha256.New()
	line := func(k objectKey) {
		for _, s := range []string{k.kind, "\x00", k.name, "\x00", n.hashes[k], "\n"} {
			_, _ = io.WriteString(h, s)
		}
	}
	c := n.registry.Content()
	for i := range c.Members {
		line(objectKey{kindMember, c.Members[i].Name})
	}
	for i := range c.Devices {
		line(objectKey{kindDevice, c.Devices[i].Name})
	}
	for i := range c.Services {
		line(objectKey{kindService, c.Services[i].Name})
	}
	for i := range c.Memberships {
		line(membershipKey(&c.Memberships[i]))
	}
	for i := range c.Contracts {
		line(objectKey{kindContract, c.Contracts[i].Name})
	}
	return Hash(h.Sum(nil))
}

// without is a copy of a content that lacks some objects. The lists are new ones: registries are read-only.
func without(c registry.Content, gone map[objectKey]bool) registry.Content {
	return registry.Content{
		Members:     keepers(c.Members, func(m *registry.Member) bool { return gone[objectKey{kindMember, m.Name}] }),
		Devices:     keepers(c.Devices, func(d *registry.Device) bool { return gone[objectKey{kindDevice, d.Name}] }),
		Services:    keepers(c.Services, func(v *registry.Service) bool { return gone[objectKey{kindService, v.Name}] }),
		Memberships: keepers(c.Memberships, func(m *registry.Membership) bool { return gone[membershipKey(m)] }),
		Contracts:   keepers(c.Contracts, func(k *registry.Contract) bool { return gone[objectKey{kindContract, k.Name}] }),
	}
}

func membershipKey(m *registry.Membership) objectKey {
	return objectKey{kindMembership, m.Device + "/" + m.Service}
}

func keepers[T any](list []T, gone func(*T) bool) []T {
	var out []T // nil where there are none: that is the canonical form
	for i := range list {
		if !gone(&list[i]) {
			out = append(out, list[i])
		}
	}
	return out
}

func decode[T any](list *[]T, k objectKey, value string) error {
	var v T
	d := json.NewDecoder(strings.NewReader(value))
	d.DisallowUnknownFields() // an object that is understood by half must not be compiled
	if err := d.Decode(&v); err != nil {
		return fmt.Errorf("%w: %s %s: %w", ErrSchema, k.kind, k.name, err)
	}
	*list = append(*list, v)
	return nil
}

const revisionColumns = "SELECT revision, applied_at, who, why, added, changed, removed, hash FROM revision"

func scanApplied(r row) (a Applied, err error) {
	var rev, at int64
	var hash string
	if err := r.Scan(&rev, &at, &a.Who, &a.Why, &a.Added, &a.Changed, &a.Removed, &hash); err != nil {
		return a, err
	}
	a.Revision, a.At = Revision(rev), fromMicro(at)
	a.Hash, err = parseHash(hash)
	return a, err
}

func (s *Store) applied(ctx context.Context, at Revision) (a Applied, err error) {
	err = ErrNotFound
	if readErr := s.reader(ctx).rows(func(r row) error { a, err = scanApplied(r); return err }, revisionColumns+" WHERE revision = ?", int64(at)); readErr != nil {
		err = readErr
	}
	if err != nil {
		return Applied{}, fmt.Errorf("revision %d: %w", at, err)
	}
	return a, nil
}

// History returns at most limit (0: MaxPage) entries below a revision, the newest first; before 0
// starts at the newest.
func (s *Store) History(ctx context.Context, before Revision, limit int) ([]Applied, error) {
	if before == 0 {
		before = 1<<63 - 1
	}
	var out []Applied
	err := s.reader(ctx).rows(func(r row) error {
		a, err := scanApplied(r)
		out = append(out, a)
		return err
	}, revisionColumns+" WHERE revision < ? ORDER BY revision DESC LIMIT ?", int64(before), page(limit))
	if err != nil {
		return nil, fmt.Errorf("history: %w", err)
	}
	return out, nil
}
