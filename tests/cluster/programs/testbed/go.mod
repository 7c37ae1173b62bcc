module paceline.dev/testbed

go 1.26.0
