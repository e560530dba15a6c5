// Package issuetest has the fakes that stand around package issue in tests.
package issuetest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"wardgate/sp/issue"
)

// Memory is a Recorder that forgets. It is safe for concurrent use.
type Memory struct {
	mu      sync.Mutex // guards what follows
	records []issue.Record
	byID    map[string]int
	byKey   map[string]int // the newest, by service and key
	numbers map[string]int64
	fail    error
}

// NewMemory returns an empty recorder.
func NewMemory() *Memory {
	return &Memory{byID: map[string]int{}, byKey: map[string]int{}, numbers: map[string]int64{}}
}

// Fail makes every call return err; nil: works again.
func (m *Memory) Fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

// All returns what was recorded, oldest first.
func (m *Memory) All() []issue.Record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]issue.Record(nil), m.records...)
}

func id(service, issuer, serial string) string { return service + " " + issuer + " " + serial }

func keyOf(service string, key [32]byte) string { return fmt.Sprintf("%s %x", service, key) }

// Add implements issue.Recorder.
func (m *Memory) Add(_ context.Context, r issue.Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	k := keyOf(r.Service, r.Key)
	if i, ok := m.byKey[k]; ok {
		old := &m.records[i]
		if old.Serial != r.Replaces && old.RevokedAt.IsZero() && old.NotAfter.After(r.NotBefore) {
			return issue.ErrDuplicate
		}
	}
	if _, ok := m.byID[id(r.Service, r.Issuer, r.Serial)]; ok {
		return fmt.Errorf("serial number %s twice", r.Serial)
	}
	m.byID[id(r.Service, r.Issuer, r.Serial)] = len(m.records)
	m.byKey[k] = len(m.records)
	m.records = append(m.records, r)
	return nil
}

// Find implements issue.Recorder.
func (m *Memory) Find(_ context.Context, service, issuer, serial string) (issue.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return issue.Record{}, m.fail
	}
	if i, ok := m.byID[id(service, issuer, serial)]; ok {
		return m.records[i], nil
	}
	return issue.Record{}, issue.ErrNotIssued
}

// FindKey implements issue.Recorder.
func (m *Memory) FindKey(_ context.Context, service string, key [32]byte) (issue.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return issue.Record{}, m.fail
	}
	if i, ok := m.byKey[keyOf(service, key)]; ok {
		return m.records[i], nil
	}
	return issue.Record{}, issue.ErrNotIssued
}

// Revoke implements issue.Recorder.
func (m *Memory) Revoke(_ context.Context, service, issuer, serial string, at time.Time, reason int) (issue.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return issue.Record{}, m.fail
	}
	i, ok := m.byID[id(service, issuer, serial)]
	if !ok {
		return issue.Record{}, issue.ErrNotIssued
	}
	if !m.records[i].RevokedAt.IsZero() {
		return m.records[i], issue.ErrRevoked
	}
	m.records[i].RevokedAt, m.records[i].Reason = at, reason
	return m.records[i], nil
}

// Revoked implements issue.Recorder.
func (m *Memory) Revoked(_ context.Context, service, issuer string, since, now time.Time) ([]issue.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return nil, m.fail
	}
	var out []issue.Record
	for i := range m.records {
		r := &m.records[i]
		if r.Service == service && r.Issuer == issuer && r.Revoked(now) && !r.NotAfter.Before(since) {
			out = append(out, *r)
		}
	}
	return out, nil
}

// NextCRLNumber implements issue.Recorder.
func (m *Memory) NextCRLNumber(_ context.Context, service, issuer string) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return 0, m.fail
	}
	m.numbers[service+" "+issuer]++
	return m.numbers[service+" "+issuer], nil
}
