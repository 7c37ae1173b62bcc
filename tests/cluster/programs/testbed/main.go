// The test cluster's own image: `pause` holds a pod's namespaces, `serve` answers every request with the host's name,
// `get URL COUNT` asks COUNT times on new connections and prints how often each answer came.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func pause() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		for { // as process 1 it reaps what its pod leaves behind
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}

func serve() error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	answer := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, host) }
	return http.ListenAndServe(":8080", http.HandlerFunc(answer))
}

func get(url, count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answers := map[string]int{}
	for range n {
		response, err := client.Get(url)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil {
			return err
		}
		answers[string(body[:max(0, len(body)-1)])]++
	}
	for answer, times := range answers {
		fmt.Println(answer, times)
	}
	return nil
}

func main() {
	var err error
	switch args := os.Args[1:]; {
	case len(args) == 1 && args[0] == "pause":
		pause()
	case len(args) == 1 && args[0] == "serve":
		err = serve()
	case len(args) == 3 && args[0] == "get":
		err = get(args[1], args[2])
	default:
		err = fmt.Errorf("testbed pause | serve | get URL COUNT")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
