#!/bin/sh
cat /opt/checksum
