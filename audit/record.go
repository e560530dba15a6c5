// Package audit is the facility's own record of what happened: JSON lines, each chained to the one
// before it by SHA-256, so that a change, a deletion, an insertion or a truncation shows.
// The format is described in docs/audit.md.
package audit

import "time"

// Event says what kind of thing happened. The strings are stable.
type Event string

// Result says how it went.
type Result string

// Events.
const (
	EventStarted          Event = "daemon-started"
	EventStopped          Event = "daemon-stopped"
	EventPolicyInstalled  Event = "policy-installed"
	EventPolicyRefused    Event = "policy-refused"
	EventPolicyExpired    Event = "policy-expired"
	EventPolicyEndsSoon   Event = "policy-expires-soon"
	EventConnectionUp     Event = "connection-up"
	EventConnectionDown   Event = "connection-down"
	EventConnectionFailed Event = "connection-failed"
	EventConnectionRekey  Event = "connection-rekeyed"
	EventConnectionMoved  Event = "connection-moved" // to other addresses; Detail["before"] and Detail["path"]
	EventAuthRefused      Event = "auth-refused"
	EventFlowAllowed      Event = "flow-allowed" // first packet of a flow, or a summary
	EventFlowRefused      Event = "flow-refused" // aggregated: Detail["count"], Detail["first"], Detail["last"]
	EventRelayRefused     Event = "relay-refused"
	EventTokenRemoved     Event = "token-removed"
	EventTokenInserted    Event = "token-inserted"
	EventTokenWritten     Event = "token-written"
	EventTokenError       Event = "token-error"
	EventTokenFull        Event = "token-full"
	EventTokenReadOnly    Event = "token-read-only"
	EventPINRefused       Event = "pin-refused"     // tried once, wrong
	EventPINNotTried      Event = "pin-not-retried" // known to be wrong
	EventPINLastTry       Event = "pin-last-try"    // not spent
	EventPINLocked        Event = "pin-locked"
	EventPINSource        Event = "pin-source" // cannot be read
	EventChipDied         Event = "chip-died"
	EventChipHung         Event = "chip-hung"
	EventChipStartFailed  Event = "chip-start-failed"
	EventChipRestarted    Event = "chip-restarted"
	EventCertificate      Event = "certificate-enrolled" // by the centre, or renewed
	EventServiceLeft      Event = "service-removed"      // what a service had on the token is gone
	EventCentreFailed     Event = "centre-failed"        // Detail["error"] tells
	EventCentreBack       Event = "centre-back"
	EventCentre           Event = "centre-notice" // Detail["code"]
	EventOperator         Event = "operator-command"
	EventClock            Event = "clock-changed"
	EventKernel           Event = "kernel-restored" // filters or routes had been changed from outside
	EventLogDamaged       Event = "log-damaged"     // written by Open: a half-written last line was found
	EventLogRotated       Event = "log-rotated"     // written by the log: last record of a file
	EventLogContinued     Event = "log-continued"   // written by the log: first record of the next file
)

// Results.
const (
	ResultOK      Result = "ok"
	ResultRefused Result = "refused"
	ResultFailed  Result = "failed"
	ResultInfo    Result = "info"
)

// Clock quality: how good the clock was that gave Record.Time.
const (
	ClockUnknown      = "unknown"
	ClockUnsynced     = "unsynchronised"
	ClockSynchronised = "synchronised"
)

// Record is one event. Seq, Prev and Hash are set by the Log; the rest by the caller.
type Record struct {
	Seq        uint64            `json:"seq"`
	Time       time.Time         `json:"time"`                     // UTC in the file, nanoseconds
	Clock      string            `json:"clock,omitempty"`          // ClockUnknown, ClockUnsynced, ClockSynchronised
	ClockError time.Duration     `json:"clock_error_ns,omitempty"` // bound of the clock's error, nanoseconds, where known
	Event      Event             `json:"event"`
	Who        string            `json:"who,omitempty"`   // identity: device id, service id, operator's name
	What       string            `json:"what,omitempty"`  // object: connection, policy serial, certificate
	Where      string            `json:"where,omitempty"` // address, host, interface
	Result     Result            `json:"result"`
	Detail     map[string]string `json:"detail,omitempty"`
	Prev       string            `json:"prev"` // hex SHA-256 of the record before; 64 zeros for the first
	Hash       string            `json:"hash"` // hex SHA-256 of this record without hash; docs/audit.md
}
