// Package ikeload puts load on an IKE responder: thousands of initiators in one process, and a
// responder of our own to stand beside other people's. Both are package ike over real UDP sockets;
// the data path gets no further than the ESP SAs that a CHILD SA's keys make.
package ikeload
