package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// Kinds of errors, for errors.Is.
var (
	// ErrNotFound: there is no such thing.
	ErrNotFound = errors.New("not found")
	// ErrConflict: it is no longer, or not yet, as the caller expected; read again.
	ErrConflict = errors.New("conflict")
	// ErrTooOld: something newer is there already, or what was asked for is kept no longer.
	ErrTooOld = errors.New("too old")
	// ErrReplay: this very request was seen before.
	ErrReplay = errors.New("replayed request")
	// ErrLeaseLost: the lease ran out and another instance has the work now. Nothing was written.
	ErrLeaseLost = errors.New("lease lost")
	// ErrInvalid: an argument breaks a rule or a limit.
	ErrInvalid = errors.New("invalid argument")
	// ErrBusy: the database did not get to it in time. Nothing was written; try again.
	ErrBusy = errors.New("database busy")
	// ErrUnavailable: the database cannot be reached. Nothing was written.
	ErrUnavailable = errors.New("database unavailable")
	// ErrUncertain: the connection broke while a write was being confirmed: it is done, or not at all.
	// Repeat it.
	ErrUncertain = errors.New("outcome unknown")
	// ErrDamaged: what the database holds contradicts itself.
	ErrDamaged = errors.New("database damaged")
	// ErrSchema: the database belongs to a newer program, or to another one.
	ErrSchema = errors.New("database of another program")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("store closed")
)

// ConflictError says which revision the registry really has. It is an ErrConflict.
type ConflictError struct{ Expected, Current Revision }

func (e *ConflictError) Error() string {
	return fmt.Sprintf("expected the registry at revision %d, it is at %d: somebody else changed it; make the plan again", e.Expected, e.Current)
}

// Is makes it an ErrConflict.
func (e *ConflictError) Is(target error) bool { return target == ErrConflict }

// SerialError says which policy a device has already. It is an ErrTooOld.
type SerialError struct {
	Device          string
	Offered, Newest uint64
}

func (e *SerialError) Error() string {
	return fmt.Sprintf("expected a policy for %s with a serial above %d, came %d: serials never go back; compile it again", e.Device, e.Newest, e.Offered)
}

// Is makes it an ErrTooOld.
func (e *SerialError) Is(target error) bool { return target == ErrTooOld }

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
}

// kindOf gives an error of a driver its kind; errors that have one, and those of the caller's
// context, stay as they are.
func kindOf(err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	kind := func(k error) error { return fmt.Errorf("%w: %w", k, err) }
	if lite := (*sqlite.Error)(nil); errors.As(err, &lite) {
		switch lite.Code() & 0xff {
		case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
			return kind(ErrBusy)
		case sqlite3.SQLITE_CONSTRAINT:
			return kind(ErrConflict)
		case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
			return kind(ErrDamaged)
		case sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM:
			return kind(ErrUnavailable)
		}
		return err
	}
	if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) {
		switch pg.Code[:2] {
		case "23": // integrity constraint violation
			return kind(ErrConflict)
		case "40", "55", "57": // rolled back, not available, cancelled by the server
			if pg.Code == "57P01" || pg.Code == "57P02" || pg.Code == "57P03" {
				return kind(ErrUnavailable) // the server shuts down, has crashed, or starts
			}
			return kind(ErrBusy)
		case "08", "53", "58": // connection, resources, system
			return kind(ErrUnavailable)
		case "XX":
			return kind(ErrDamaged)
		}
		return err
	}
	var connect *pgconn.ConnectError
	var network net.Error
	if errors.As(err, &connect) || errors.As(err, &network) || errors.Is(err, driver.ErrBadConn) {
		return kind(ErrUnavailable)
	}
	return err
}
