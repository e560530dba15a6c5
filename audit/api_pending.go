package audit

import (
	"errors"
	"time"
)

var errPending = errors.New("audit: being written")

// Sync says when a record is forced to the disk.
type Sync uint8

// Sync policies.
const (
	SyncAlways   Sync = iota // before Append returns (default)
	SyncInterval             // at the latest Options.SyncEvery after Append
	SyncNever                // when the kernel likes
)

// Options of a Log.
type Options struct {
	Sync      Sync
	SyncEvery time.Duration
	MaxSize   int64            // bytes after which the file is rotated; 0: 64 MiB
	Keep      int              // rotated files kept; 0: all
	Now       func() time.Time // for the log's own records; required
}

// Log is an open audit record; safe for concurrent use.
type Log struct{}

// Open opens or creates the log at path (mode 0600).
func Open(path string, opt Options) (*Log, error) { return nil, errPending }

// Append writes one record.
func (l *Log) Append(r Record) error { return errPending }

// Close syncs and closes the file.
func (l *Log) Close() error { return nil }

// Report is what verification found.
type Report struct {
	Files       []string
	Records     uint64
	First, Last uint64 // sequence numbers
	Break       *Break // nil: the chain is whole
}

// Break is the first place where the chain is broken.
type Break struct {
	File string
	Line int
	Seq  uint64
	Kind string
	Text string
}

// VerifyFile verifies the log at path and its rotated files.
func VerifyFile(path string) (Report, error) { return Report{}, errPending }

// Human returns a one-line rendering.
func (r Record) Human() string { return "" }
