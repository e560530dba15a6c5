// Package store keeps what the service provider's centre must not forget: the registry and its
// history, every certificate that was issued, requests already seen, the signed policies, what the
// devices report, the record of the centre's own actions, and the work that instances share.
//
// It keeps it in SQLite (one file, no server) or in PostgreSQL (several instances), behind the
// same Go API and the same queries.
//
// # What holds on both
//
//   - A method that writes either did all of it, durably, before it returned nil, or nothing. The
//     one exception is ErrUncertain: the connection broke while the database was confirming.
//     Every write can be repeated: the second time it changes nothing or says that it is done.
//   - Writes happen one after the other, those of all instances together (SQLite: the database's
//     own lock; PostgreSQL: an advisory lock for the length of a transaction). So sequence numbers
//     become visible in their order, and none is missed by who asks for those after the last one
//     that it saw. Reports and leases are outside of it on PostgreSQL: they have no order.
//   - Writes that wait at the same time share one transaction, each in a savepoint of its own, and
//     so one flush to disk.
//   - Readers never wait for writers.
//
// Times have microseconds; a time.Time that is zero stays so. What depends on the time of day
// takes it as an argument: instances that share a database must have clocks that agree to within a
// small part of the length of a lease. (A lease that was taken over too early costs work done
// twice, never a result stored twice: see Claim.)
package store
