/* Counts the lines and words of its standard input. */
#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>

int main(void)
{
    unsigned long lines = 0, words = 0;
    bool inside = false;
    int letter;

    while ((letter = getchar()) != EOF) {
        bool blank = isspace(letter);
        lines += letter == '\n';
        words += inside && blank;
        inside = !blank;
    }
    words += inside;
    printf("%lu lines, %lu words\n", lines, words);
    return ferror(stdin) ? 1 : 0;
}
