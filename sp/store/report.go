package store

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// Report is the state that a device told last.
type Report struct {
	Device       string
	Seen         time.Time
	Version      string    // of the device's program
	PolicySerial uint64    // in force; 0: none
	NotAfter     time.Time // of its service certificate that expires first; zero: it has none
	Connections  []ConnectionState
	Errors       []ReportedError
}

// ConnectionState is how a connection of a device is.
type ConnectionState struct {
	Name   string    `json:"name"`
	Up     bool      `json:"up"`
	Since  time.Time `json:"since,omitzero"`
	Detail string    `json:"detail,omitempty"`
}

// ReportedError is one of the last errors of a device.
type ReportedError struct {
	At   time.Time `json:"at"`
	Code string    `json:"code"`
	Text string    `json:"text"`
}

// PutReports records what devices told, each one's newest only: a report that is seen earlier than
// the one that is kept changes nothing. Collect those of some hundred milliseconds into one call:
// each call is a flush to disk.
func (s *Store) PutReports(ctx context.Context, reports []Report) error {
	type line struct {
		r             *Report
		links, errors string
	}
	err := checkCount("reports", len(reports))
	lines := make([]line, 0, len(reports))
	for i := range reports {
		r := &reports[i]
		if err == nil {
			err = firstError(checkName("device", r.Device), checkText("version", r.Version, MaxName, false))
		}
		if err == nil && r.PolicySerial > 1<<63-1 {
			err = invalid("serial in the report of %s: expected less than 2^63, came %d", r.Device, r.PolicySerial)
		}
		if err != nil {
			break
		}
		// Invalid UTF-8 from a device becomes U+FFFD and NUL becomes \u0000 here, so both databases take it.
		links, err1 := json.Marshal(orNone(r.Connections))
		faults, err2 := json.Marshal(orNone(r.Errors))
		if err = firstError(err1, err2); err != nil {
			err = invalid("report of %s: %w", r.Device, err)
		} else {
			err = checkSize("report of "+r.Device, len(links)+len(faults), MaxReport)
		}
		lines = append(lines, line{r, string(links), string(faults)})
	}
	if err == nil {
		// In one order: so no two instances wait for each other's rows.
		slices.SortStableFunc(lines, func(a, b line) int {
			return cmp.Or(cmp.Compare(a.r.Device, b.r.Device), a.r.Seen.Compare(b.r.Seen))
		})
		err = s.writeFree(ctx, func(t *tx) error {
			for _, l := range lines {
				if _, err := t.exec(`INSERT INTO report (device, seen_at, version, policy_serial, not_after, connections, errors) VALUES (?, ?, ?, ?, ?, ?, ?)
					ON CONFLICT (device) DO UPDATE SET seen_at = excluded.seen_at, version = excluded.version, policy_serial = excluded.policy_serial,
					not_after = excluded.not_after, connections = excluded.connections, errors = excluded.errors WHERE excluded.seen_at >= report.seen_at`,
					l.r.Device, micro(l.r.Seen), l.r.Version, int64(l.r.PolicySerial), micro(l.r.NotAfter), l.links, l.errors); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err != nil {
		return fmt.Errorf("record reports: %w", err)
	}
	return nil
}

func orNone[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}

const reportColumns = "SELECT device, seen_at, version, policy_serial, not_after, connections, errors FROM report"

func (s *Store) reports(ctx context.Context, q string, args ...any) ([]Report, error) {
	var out []Report
	err := s.reader(ctx).rows(func(row row) error {
		var r Report
		var seen, serial, notAfter int64
		var links, faults string
		if err := row.Scan(&r.Device, &seen, &r.Version, &serial, &notAfter, &links, &faults); err != nil {
			return err
		}
		r.Seen, r.PolicySerial, r.NotAfter = fromMicro(seen), uint64(serial), fromMicro(notAfter)
		if err := firstError(json.Unmarshal([]byte(links), &r.Connections), json.Unmarshal([]byte(faults), &r.Errors)); err != nil {
			return fmt.Errorf("%w: report of %s: %w", ErrDamaged, r.Device, err)
		}
		out = append(out, r)
		return nil
	}, q, args...)
	if err != nil {
		return nil, fmt.Errorf("reports: %w", err)
	}
	return out, nil
}

// Report returns what a device told last.
func (s *Store) Report(ctx context.Context, device string) (*Report, error) {
	list, err := s.reports(ctx, reportColumns+" WHERE device = ?", device)
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("report of %s: %w", device, ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	return &list[0], nil
}

// Reports returns what devices told last, by device, those after a name (empty: from the first on), at
// most limit (0: MaxPage).
func (s *Store) Reports(ctx context.Context, after string, limit int) ([]Report, error) {
	return s.reports(ctx, reportColumns+" WHERE device > ? ORDER BY device LIMIT ?", after, page(limit))
}

// Silent returns devices that have told nothing since a time, those silent for longest first.
func (s *Store) Silent(ctx context.Context, since time.Time, limit int) ([]Report, error) {
	return s.reports(ctx, reportColumns+" WHERE seen_at < ? ORDER BY seen_at, device LIMIT ?", micro(since), page(limit))
}

// Behind returns devices whose policy in force is older than their newest one, by device, those
// after a name, at most limit (0: MaxPage).
func (s *Store) Behind(ctx context.Context, after string, limit int) ([]Report, error) {
	return s.reports(ctx, reportColumns+` WHERE device > ? AND EXISTS
		(SELECT 1 FROM policy_head WHERE policy_head.device = report.device AND policy_head.serial > report.policy_serial)
		ORDER BY device LIMIT ?`, after, page(limit))
}
