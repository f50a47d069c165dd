package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"time"
)

const streamPeriod = 100 * time.Millisecond

// stream sends a numbered line ten times a second for ?seconds=N (10 if not
// said), or until the client leaves if the table holds streams open.
func (g *guest) stream(w http.ResponseWriter, r *http.Request) {
	seconds, err := strconv.ParseFloat(r.URL.Query().Get("seconds"), 64)
	if err != nil || seconds < 0 {
		seconds = 10
	}
	flusher, ok := w.(http.Flusher)
	if !ok {
		http.Error(w, "cannot stream", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	ticker := time.NewTicker(streamPeriod)
	defer ticker.Stop()
	count := int(seconds * float64(time.Second/streamPeriod))
	for i := 0; i < count || g.table().HoldStreams; i++ {
		if _, err := fmt.Fprintf(w, "chunk %d\n", i); err != nil {
			return
		}
		flusher.Flush()
		select {
		case <-ticker.C:
		case <-r.Context().Done():
			return
		case <-g.stopped:
			return
		}
	}
}

// echo sends the body back while it still arrives. net/http would first read
// the body to its end, so the connection is taken over. A body without a length
// ends with the client's half-close, and the answer ends with ours.
func (g *guest) echo(w http.ResponseWriter, r *http.Request) {
	hijacker, ok := w.(http.Hijacker)
	if r.Method != http.MethodPost || !ok {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "POST a body to have it back", http.StatusMethodNotAllowed)
		return
	}
	conn, rw, err := hijacker.Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	g.servers.take(conn)
	defer g.servers.release(conn)
	_ = conn.SetDeadline(time.Time{})
	head := "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nConnection: close\r\n\r\n"
	if strings.EqualFold(r.Header.Get("Expect"), "100-continue") {
		head = "HTTP/1.1 100 Continue\r\n\r\n" + head
	}
	if _, err := io.WriteString(conn, head); err != nil {
		return
	}
	_, _ = io.Copy(onlyWriter{conn}, requestBody(r, rw.Reader))
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}

// requestBody is the body as the request's framing delimits it.
func requestBody(r *http.Request, raw *bufio.Reader) io.Reader {
	switch {
	case len(r.TransferEncoding) > 0 && r.TransferEncoding[0] == "chunked":
		return httputil.NewChunkedReader(raw)
	case r.Header.Get("Content-Length") != "":
		return io.LimitReader(raw, r.ContentLength)
	default:
		return raw
	}
}

// onlyWriter hides ReadFrom, so that io.Copy passes on each piece as it comes.
type onlyWriter struct{ io.Writer }
